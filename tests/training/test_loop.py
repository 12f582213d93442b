"""What the loop learns, keeps as it was, and refuses."""

import copy
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from sklearn.datasets import load_digits
from torch import fx, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from fxsurgery.errors import DataError, DeviceError, DivergedError, TrainingError
from fxsurgery.training import Hooks, Progress, Recipe, Task, adamw, cosine, evaluate, fit, recalibrate, sgd
from nonempty import nonempty


def net(seed=0, dropout=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
            nn.Dropout(dropout), nn.Linear(256, 10),
        )  # fmt: skip
    return fx.symbolic_trace(model).eval()


def digits(samples=None, **options):
    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    return Task.of((x[:1300][:samples], y[:1300][:samples]), (x[1300:], y[1300:]), **options)


def recipe(steps=6, lr=0.05, **options):
    return Recipe(steps=steps, optimizer=sgd(lr, weight_decay=1e-4), schedule=cosine(), **options)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_learns_digits():
    model, task, progress = net(), digits(), Progress.quiet()
    report = fit(model, task, recipe(steps=100), stage="weights", progress=progress, device="cpu")
    score = evaluate(model, task)
    assert score.metric > 0.9
    assert report.score == score
    assert (report.steps, report.epochs) == (100, 5)
    assert [r["step"] for r in progress.history if r["metric"] is not None] == [25, 50, 75, 100]
    assert {"stage", "epoch", "step", "loss", "metric", "lr", "seconds"} <= set(progress.history[-1])
    assert progress.history[-1]["loss"] == report.loss < progress.history[0]["loss"]


def test_learns_any_loss():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    task = Task.of((x, x @ torch.ones(4, 1)), (x, x @ torch.ones(4, 1)), loss=nn.MSELoss(), batch_size=16)
    model = nn.Linear(4, 1)
    report = fit(model, task, Recipe(steps=100, optimizer=adamw(0.1)), device="cpu")
    assert report.score.metric == report.score.loss < 0.05
    assert not task.higher_is_better


def test_takes_dict_batches_apart_by_split():
    rows = [{"a": torch.randn(3), "b": torch.randn(3), "y": torch.randn(1)} for _ in range(8)]
    loader = DataLoader(rows, batch_size=4)
    task = Task.of(loader, loader, loss=nn.L1Loss(), split=lambda b: ((b["a"], b["b"]), b["y"]))
    model = nn.Bilinear(3, 3, 1)
    before = state(model)
    fit(model, task, recipe(2), device="cpu")
    assert not same(before, state(model))


def test_same_seed_gives_the_same_bits_whatever_ran_before():
    ends = []
    for noise, seed in ((1, 7), (2, 7), (1, 8)):
        torch.rand(noise)
        model = net(dropout=0.5)
        fit(model, digits(200), recipe(), seed=seed, device="cpu")
        ends.append(state(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


@pytest.mark.parametrize("own", [True, False], ids=["task's shuffle", "user's shuffle"])
def test_an_epochs_order_does_not_depend_on_what_was_drawn_before(own):
    x, seen = torch.arange(12.0)[:, None], {0: [], 5: []}
    data = (x, x)
    if not own:
        data = DataLoader(TensorDataset(*data), batch_size=4, shuffle=True)
    for draws, order in seen.items():
        task = Task.of(
            data, (x, x), batch_size=4, loss=nn.MSELoss(),
            split=lambda batch, order=order: (order.append(batch[0].flatten().tolist()), ((batch[0],), batch[1]))[1],
        )  # fmt: skip
        hooks = Hooks(after_step=lambda _, draws=draws: torch.rand(draws))
        fit(nn.Linear(1, 1), task, recipe(9, lr=1e-4, validations=0), hooks=hooks, device="cpu")
    assert seen[0] == seen[5]
    assert seen[0][:3] != seen[0][3:6] != seen[0][6:]


def test_validating_on_the_way_does_not_change_the_weights():
    models = [net(dropout=0.5), net(dropout=0.5)]
    for model, validations in zip(models, (0, 3), strict=True):
        fit(model, digits(200), recipe(validations=validations), device="cpu")
    assert same(state(models[0]), state(models[1]))


def test_a_users_shuffled_loader_is_reproducible_and_its_generator_kept():
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(32, 1, 8, 8), torch.randint(10, (32,)))
    other = torch.Generator().manual_seed(2)
    ends, before = [], generator.get_state()
    for loader in (DataLoader(data, 8, shuffle=True, generator=g) for g in (generator, other, None, None)):
        model = net()
        fit(model, Task(loader, loader), recipe(), device="cpu")
        ends.append(state(model))
    assert same(ends[0], ends[1])
    assert same(ends[2], ends[3])
    assert torch.equal(generator.get_state(), before)


def test_nothing_that_reads_data_moves_a_users_generators():
    class Noisy(TensorDataset):
        rng = None

        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + self.rng.random(), y

    data = Noisy(torch.randn(32, 1, 8, 8), torch.randint(10, (32,)))
    data.rng, inner, outer = np.random.default_rng(0), torch.Generator().manual_seed(1), torch.Generator()
    sampler = BatchSampler(RandomSampler(data, generator=inner), 8, drop_last=False)
    loader, ends = DataLoader(data, batch_sampler=sampler, generator=outer), []
    before = data.rng.bit_generator.state, inner.get_state().tolist(), outer.get_state().tolist()
    task = Task(loader, loader)
    for _ in range(2):
        model = net()
        task.examples()
        recalibrate(model, task)
        report = fit(model, task, recipe(), device="cpu")
        assert evaluate(model, task) == report.score
        ends.append(state(model))
        assert before == (data.rng.bit_generator.state, inner.get_state().tolist(), outer.get_state().tolist())
    assert same(*ends)


def test_global_random_states_are_untouched():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002 -- away from where another test left them
    before = states()
    task, model = digits(100), net(dropout=0.5)
    fit(model, task, recipe(), device="cpu")
    evaluate(model, task)
    task.examples()
    assert states() == before


def test_only_the_chosen_parameters_move_and_flags_come_back():
    model = net()
    model.get_parameter("4.weight").requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before = state(model)
    fit(model, digits(100), recipe(), parameters=[model.get_parameter("4.weight")], device="cpu")
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {"4.weight"}
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in nonempty(model.parameters()))
    assert not any(module.training for module in model.modules())


def test_hooks_see_each_step_and_may_edit_gradients():
    model, seen = net(), []
    bias = model.get_parameter("9.bias")
    before = bias.detach().clone()

    def before_step(info):
        seen.append(("before", info.step, info.steps, bias.grad is not None))
        bias.grad.zero_()

    hooks = Hooks(before_step=before_step, after_step=lambda info: seen.append(("after", info.step)))
    fit(model, digits(100), Recipe(steps=2, optimizer=sgd(0.1)), hooks=hooks, device="cpu")
    assert seen == [("before", 0, 2, True), ("after", 0), ("before", 1, 2, True), ("after", 1)]
    assert torch.equal(before, bias)


def test_penalty_alone_moves_what_the_loss_does_not_see():
    model = net()
    extra = model.register_parameter("extra", nn.Parameter(torch.ones(3))) or model.extra
    hooks = Hooks(objective=lambda model, batch: (batch.loss(batch.predict(model)) + extra.square().sum(), {}))
    fit(model, digits(100), Recipe(steps=3, optimizer=sgd(0.1)), parameters=[extra], hooks=hooks, device="cpu")
    assert (extra < 1).all()


def test_gradients_are_clipped_after_the_hook():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    hooks = Hooks(before_step=lambda _: model.weight.grad.fill_(1e3))
    data = (torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    once = Recipe(steps=1, optimizer=sgd(1.0), gradient_clip=0.5)
    fit(model, Task.of(data, data), once, hooks=hooks, device="cpu")
    assert (model.weight - before).norm() <= 0.5 + 1e-5


def test_a_single_left_over_sample_does_not_stop_a_batch_norm():
    x, y = torch.randn(9, 4), torch.randint(2, (9,))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    report = fit(model, Task.of((x, y), (x, y), batch_size=4), recipe(4), device="cpu")
    assert report.samples == 16


def test_no_steps_is_no_training():
    model = net()
    before = state(model)
    assert fit(model, digits(10), recipe(0)).score is None
    assert same(before, state(model))


@pytest.mark.parametrize("lr", [float("inf"), 1e30])
def test_loss_that_is_not_finite_names_stage_step_and_rate(lr):
    model = net()
    with pytest.raises(TrainingError, match=r"stage 'weights', step \d+ of 20: the loss is .*lower the learning"):
        fit(model, digits(100), Recipe(steps=20, optimizer=sgd(lr)), stage="weights", device="cpu")
    assert not any(module.training for module in model.modules())


def test_weights_that_the_last_step_ruins_are_told():
    data = (torch.ones(4, 2), torch.zeros(4, 2))
    task = Task.of(data, data, loss=lambda output, target: (output - output.detach()).square().sum().sqrt())
    with pytest.raises(TrainingError, match="weight, bias ended with values that are not finite; lower the learning"):
        fit(nn.Linear(2, 2), task, Recipe(steps=1, optimizer=sgd(0.1), validations=0), device="cpu")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, target: output.sum(1), r"scalar tensor.*it gave \(64,\) float32"),
        (lambda output, target: 1.0, "scalar tensor.*it gave float"),
        (lambda output, target: output.detach().sum(), "does not depend on any parameter"),
    ],
)
def test_refuses_a_loss_that_cannot_train(loss, message):
    with pytest.raises(TrainingError, match=message):
        fit(net(), digits(100, loss=loss), recipe(), device="cpu")


def test_loss_that_does_not_fit_is_told_with_shapes_and_cause():
    task = digits(100, loss=lambda output, target: (output - target).mean())
    message = r"the loss cannot take output \(64, 10\) float32 and target \(64,\) int64"
    with pytest.raises(DataError, match=message) as caught:
        fit(net(), task, recipe(), device="cpu")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_batch_that_does_not_fit_the_model_is_told_with_shapes():
    data = (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match=r"the model cannot take inputs \(\(4, 3, 8, 8\) float32\)"):
        fit(net(), Task.of(data, data), recipe(), device="cpu")


def test_empty_loader_is_refused():
    empty = DataLoader(TensorDataset(torch.zeros(3, 2), torch.zeros(3)), batch_size=4, drop_last=True)
    with pytest.raises(DataError, match="train_data is empty"):
        fit(nn.Linear(2, 2), Task(empty, empty), recipe(), device="cpu")


def test_parameters_of_another_model_are_refused():
    with pytest.raises(TrainingError, match="not of this model"):
        fit(net(), digits(100), recipe(), parameters=net().parameters(), device="cpu")
    with pytest.raises(TrainingError, match="nothing to train"):
        fit(net(), digits(100), recipe(), parameters=[], device="cpu")


@pytest.mark.parametrize("device", ["cuda:77", "abacus"])
def test_device_that_is_not_there_is_refused(device):
    with pytest.raises(DeviceError, match=f"{device}.*this machine has: cpu"):
        fit(net(), digits(100), recipe(), device=device)


def test_trains_in_bfloat16_and_leaves_no_trace_on_the_model():
    model, kinds = net(), []
    before = set(vars(model))
    model.get_submodule("9").register_forward_hook(lambda m, i, output: kinds.append((m.training, output.dtype)))
    report = fit(model, digits(200), recipe(30, mixed_precision="bf16"), device="cpu")
    assert (True, torch.bfloat16) in kinds
    assert report.loss < 2.2
    assert set(vars(model)) == before
    assert copy.deepcopy(model)(torch.zeros(2, 1, 8, 8)).dtype == torch.float32
    assert model(torch.zeros(2, 1, 8, 8)).dtype == torch.float32
    fit(model, digits(200), recipe(1), device="cpu")
    assert kinds[-1][1] == torch.float32


def test_a_users_accelerator_stays_as_it_was():
    accelerator = Accelerator(cpu=True)
    try:
        fit(net(), digits(100), recipe(1, mixed_precision="bf16"), device="cpu")
        assert accelerator.mixed_precision == "no"
        assert accelerator.device.type == "cpu"
        fit(net(), digits(100), recipe(1), device=accelerator)
        with pytest.raises(DeviceError, match="asks for bf16, the Accelerator has no"):
            fit(net(), digits(100), recipe(1, mixed_precision="bf16"), device=accelerator)
    finally:
        accelerator.state._reset_state(reset_partial_state=True)
    assert not PartialState._shared_state


def test_denormals_are_flushed_only_meanwhile():
    tiny, seen = torch.full((1,), 1e-310, dtype=torch.float64), []
    hooks = Hooks(after_step=lambda _: seen.append(float(tiny * 1)))
    fit(net(), digits(100), recipe(1), hooks=hooks, device="cpu")
    assert seen == [0.0]
    assert float(tiny * 1) > 0


SHARED = """
import sys
import torch
from torch import nn
from fxsurgery.training import Recipe, Task, fit, sgd, steps_for
x = torch.randn(101, 4, generator=torch.Generator().manual_seed(0))
task = Task.of((x, (x.sum(1) > 0).long()), (x, (x.sum(1) > 0).long()), batch_size=10)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
for tensor in model.parameters():
    nn.init.constant_(tensor, 0.1)
recipe = Recipe(steps=8, optimizer=sgd(0.1), validations=1)
report = fit(model, task, recipe, device="cpu", parameters=model[2].parameters())
tensors = [t.detach().double().sum().item() for t in model.state_dict().values()]
seen = (report.samples, report.epochs, report.score.samples, steps_for(task, 2, min_steps=1), tensors)
sys.stdout.write(f"{seen}\\n")
"""


@pytest.mark.slow
def test_two_processes_share_the_batches_and_agree_on_the_model(tmp_path):
    (script := tmp_path / "script.py").write_text(SHARED)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("(")]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0].startswith("(80, 1, 101, 22, ")


class Overwrites(nn.Module):
    """Writes into the output of an activation, which backward needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Linear(288, 10)

    def forward(self, x):
        y = self.a(x).relu()
        y[:, :, 1:] *= 2.0
        return self.b(y.flatten(1))


def test_a_model_that_backward_cannot_go_through_is_one_error():
    with pytest.raises(
        TrainingError, match=r"stage 'tune': .*its backward pass fails: one of the var.* in place"
    ) as caught:
        fit(Overwrites(), digits(64), recipe(steps=2), stage="tune", device="cpu")
    assert isinstance(caught.value.__cause__, RuntimeError)


def words():
    ids = torch.randint(0, 50, (32, 5), generator=torch.Generator().manual_seed(0))
    return Task.of((ids, torch.arange(32) % 4), (ids, torch.arange(32) % 4), batch_size=8)


def bag(sparse):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.EmbeddingBag(50, 16, mode="sum", sparse=sparse), nn.Linear(16, 4))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": sgd(0.1, weight_decay=1e-3)}, {"optimizer": adamw(1e-2)},
        {"optimizer": sgd(0.1), "gradient_clip": 0.1}, {"optimizer": sgd(0.1), "accumulate": 2},
    ],
)  # fmt: skip
def test_sparse_gradients_train_as_dense_ones_do(options):
    trained = []
    for sparse in (False, True):
        model = bag(sparse)
        fit(model, words(), Recipe(steps=4, **options), device="cpu")
        trained.append(state(model))
    for name, tensor in nonempty(trained[0].items()):
        torch.testing.assert_close(tensor, trained[1][name], atol=1e-3, rtol=1e-3)


def test_an_optimizer_of_sparse_gradients_gets_them():
    model, before = bag(sparse=True), bag(sparse=True)[0].weight.clone()
    made = Recipe(steps=2, optimizer=torch.optim.SparseAdam)
    fit(model, words(), made, parameters=[model[0].weight], device="cpu")
    assert not torch.equal(model[0].weight, before)
    with pytest.raises(
        TrainingError, match=r"the optimizer SparseAdam cannot take a step: SparseAdam does not support dense"
    ):
        fit(model, words(), made, device="cpu")


def test_data_that_are_not_finite_are_blamed_with_their_batch():
    x, y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
    x[20, 1], x[21] = float("inf"), float("nan")
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    task = Task(loader, DataLoader(TensorDataset(x[:8], y[:8]), batch_size=8))
    with pytest.raises(
        DivergedError, match=r"step 3 of 9: the loss is nan .*, batch 2 of epoch 0, entry 0 has 4 NaN and 1 inf"
    ):
        fit(nn.Linear(4, 3), task, recipe(steps=9), device="cpu")


def test_a_norm_that_ends_with_statistics_that_are_not_finite_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[1].running_mean.fill_(float("nan"))
    x, y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    with pytest.raises(DivergedError, match=r"1\.running_mean ended with values that are not finite"):
        fit(model, Task.of((x, y), (x, y)), recipe(steps=1, validations=0), device="cpu")
