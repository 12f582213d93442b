"""Synthetic inputs against the statistics they are to match, worked out apart from the code under test."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.training import fit
from fxsurgery.training.bn_inversion import Matching, noise, synthetic_inputs
from fxsurgery.training.synthesis_amount import Amount
from nonempty import nonempty
from zoo import lively

SMALL = Amount(samples=48, validation=16, steps=30, batch_size=24)


class Net(nn.Module):
    """Two norms, of a map and of a vector."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc, self.bn2, self.head = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv(x))).mean((2, 3))
        return self.head(torch.relu(self.bn2(self.fc(x))))


class Two(nn.Module):
    """An image, a vector, ids and a constant."""

    def __init__(self):
        super().__init__()
        self.net, self.bn, self.words = Net(), nn.BatchNorm1d(4), nn.Embedding(7, 5)

    def forward(self, x, y, ids, scale):
        return self.net(x) * scale + self.bn(y).sum(1, keepdim=True) + self.words(ids).mean(1)


def trained_on(model, *inputs):
    """The model with the statistics of these inputs, which are nothing like noise."""
    model.train()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        model(*inputs)
    return model.eval()


def net(dtype=torch.float32):
    images = 1 + 2 * torch.randn(64, 3, 1, 1) + 0.3 * torch.randn(64, 3, 6, 6)
    return trained_on(lively(Net()), images).to(dtype)


def program(model=None, shape=(2, 3, 6, 6)):
    model = net() if model is None else model
    dtype = next(model.parameters()).dtype
    return capture(model, torch.randn(shape, dtype=dtype))


def train(model, task, recipe, stage, *, hooks):
    fit(model, task, recipe, seed=0, stage=stage, hooks=hooks, device="cpu")


def off(model, x):
    """Mean relative error of mean and deviation over both norms, by plain PyTorch."""
    seen = []
    for norm in (model.bn1, model.bn2):
        norm.register_forward_pre_hook(lambda norm, given: seen.append((norm, given[0])))
    with torch.no_grad():
        model(x)
    errors = []
    for norm, given in seen:
        rows = given.transpose(0, 1).flatten(1).double()
        scale = norm.running_var.double().sqrt()
        errors += [(rows.mean(1) - norm.running_mean).abs() / scale, (rows.std(1) - scale).abs() / scale]
    return float(torch.cat(errors).mean())


def test_statistics_come_much_closer_than_noise():
    model = net()
    made = synthetic_inputs(program(model), dataclasses.replace(SMALL, samples=24, spread=0.0), train=train)
    assert made.matched
    assert made.gap < made.noise_gap / 20
    assert off(model, made.train.args[0]) < off(model, torch.randn(24, 3, 6, 6)) / 5
    assert off(model, made.val.args[0]) < off(model, torch.randn(16, 3, 6, 6)) / 3


def test_the_gap_is_the_formula():
    model = net()
    x = torch.randn(10, 3, 6, 6)
    matching = Matching(program(model), noise(program(model), 2, 0).joined(noise(program(model), 8, 0)), SMALL)
    matching.moved[0].data.copy_(x)
    with torch.no_grad():
        a = model.conv(x)
        b = model.fc(torch.relu(model.bn1(a)).mean((2, 3)))
    wanted = []
    for norm, rows in ((model.bn1, a.transpose(0, 1).flatten(1)), (model.bn2, b.T)):
        m, v = norm.running_mean, norm.running_var
        error = (rows.mean(1) - m) ** 2 + ((rows.var(1, correction=0) + 1e-5).sqrt() - (v + 1e-5).sqrt()) ** 2
        wanted.append((error / (v + 1e-5 + (v.mean() + 1e-5) / 20)).mean())
    assert matching.gap() == pytest.approx(float(sum(wanted) / 2), rel=1e-4)


def test_the_entropy_term_spreads_the_predictions():
    model = net()
    model.head.bias.data[0] += 3.0
    shares = []
    for spread in (0.0, 3.0):
        few = Amount(samples=16, validation=2, steps=20, batch_size=16, spread=spread)
        made = synthetic_inputs(program(model), few, train=train)
        with torch.no_grad():
            mean = model(made.train.args[0]).softmax(1).mean(0)
        shares.append(float(-(mean * mean.log()).sum()))
    assert shares[1] > shares[0] + 0.05


def test_same_seed_same_inputs():
    original, few = program(), dataclasses.replace(SMALL, steps=5)
    first, again, other = (synthetic_inputs(original, few, train=train, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.train.args[0], again.train.args[0])
    assert torch.equal(first.val.args[0], again.val.args[0])
    assert not torch.equal(first.train.args[0], other.train.args[0])


def test_held_out_inputs_are_others():
    made = synthetic_inputs(program(), dataclasses.replace(SMALL, samples=40, steps=9), train=train)
    x, y = made.train.args[0], made.val.args[0]
    assert (len(x), len(y)) == (40, 16)
    assert torch.cdist(y.flatten(1), x.flatten(1)).min() > 1.0
    assert torch.pdist(x.flatten(1)).min() > 1.0


def test_every_stage_is_named_and_saves_the_inputs_alone():
    stages = {}

    def noted(model, task, recipe, stage, *, hooks):
        stages[stage] = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        train(model, task, recipe, stage, hooks=hooks)

    synthetic_inputs(program(), dataclasses.replace(SMALL, steps=2), train=noted)
    assert list(stages) == ["synthesis 1/2", "synthesis 2/2", "synthesis, held out"]
    assert stages["synthesis 1/2"] == {"moved.0": (24, 3, 6, 6)}


def test_model_and_random_state_stay():
    original = program()
    before = {name: x.clone() for name, x in original.graph_module.state_dict().items()}
    example, state = original.example_inputs[0].clone(), torch.get_rng_state()
    synthetic_inputs(original, dataclasses.replace(SMALL, steps=3), train=train)
    assert all(torch.equal(x, before[name]) for name, x in nonempty(original.graph_module.state_dict().items()))
    assert torch.equal(original.example_inputs[0], example)
    assert torch.equal(torch.get_rng_state(), state)
    assert not original.graph_module.training
    assert all(p.requires_grad and p.grad is None for p in nonempty(original.graph_module.parameters()))


def test_without_norms_it_is_noise_and_says_so():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    made = synthetic_inputs(program(model, (2, 4)), SMALL, train=None)
    assert not made.matched
    assert math.isnan(made.gap)
    assert "noise" in str(made)
    assert made.train.args[0].std() == pytest.approx(1, abs=0.2)


def test_double_precision_stays():
    made = synthetic_inputs(program(net(torch.float64)), dataclasses.replace(SMALL, steps=3), train=train)
    assert made.train.args[0].dtype == made.val.args[0].dtype == torch.float64


def test_every_input_of_several_is_made():
    ids, scale = torch.tensor([[0, 1], [2, 3]]), torch.tensor(0.5)
    rows = (4 + torch.rand(64, 3, 6, 6), 5 + 2 * torch.randn(64, 4), torch.zeros(64, 2, dtype=torch.long), scale)
    model = trained_on(lively(Two()), *rows)
    original = capture(model, torch.randn(2, 3, 6, 6), torch.randn(2, 4), ids, scale)
    made = synthetic_inputs(original, dataclasses.replace(SMALL, samples=24, steps=60), train=train)
    x, y, words, factor = made.train.args
    assert made.gap < made.noise_gap / 5
    assert len(x) == len(y) == len(words) == 24
    assert y.mean() == pytest.approx(5, abs=0.5)
    assert set(words.unique().tolist()) == set(range(7))
    assert torch.equal(factor, scale)


def test_integers_that_no_embedding_reads_are_as_in_the_example():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids, mask):
            return self.head((self.words(ids) * mask.unsqueeze(-1)).mean(1))

    ids, mask = torch.randint(9, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    made = noise(capture(Masked().eval(), ids, mask), 6, 0)
    assert made.args[0].shape == (6, 5)
    assert int(made.args[0].max()) < 9
    assert torch.equal(made.args[1], mask.repeat(3, 1))


def test_the_amount_falls_with_the_cost():
    small, middle, large = (Amount.affordable(macs) for macs in (1e6, 1e9, 4e9))
    assert (small.samples, small.validation, small.steps) == (512, 128, 60)
    assert small.samples > middle.samples >= large.samples >= 128
    assert small.steps > middle.steps >= large.steps >= 20
