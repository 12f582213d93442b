"""The sandwich rule: the gradients of the sub-networks of a step, summed."""

import copy
import doctest
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery import capture
from fxsurgery.errors import SpecError
from fxsurgery.nn.elastic import Subnet, UnitMask, activate, elastic_space, is_largest
from fxsurgery.passes import Elasticize
from fxsurgery.training import (
    FeatureDistillation,
    Hooks,
    Progress,
    Recipe,
    SandwichObjective,
    Task,
    evaluate,
    fit,
    sandwich,
    sgd,
    task_objective,
)
from nonempty import nonempty
from zoo import lively

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.argmax(1) % 3
IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def perceptron():
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return Elasticize(widths=(0.25, 0.5, 0.75, 1.0))(capture(lively(layers).eval(), X[:2])).program


class Residual(nn.Module):
    """Elastic in width, depth and kernel."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 5, padding=2), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def residual():
    return Elasticize()(capture(lively(Residual().double().eval()), IMAGES[:2])).program


def task_of(x, **options):
    return Task.of((x, Y), (x, Y), **{"batch_size": 16, **options})


def one_step(model, objective, task, **options):
    """What one step of rate 1 takes off each parameter: its gradient."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = Recipe(steps=1, optimizer=sgd(1.0, momentum=0.0), validations=0, **options)
    fit(model, task, recipe, hooks=Hooks(objective=objective), device="cpu")
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def sizes(subnets):
    return [width for subnet in subnets.values() for _, width in subnet.widths]


def test_the_gradient_is_the_sum_over_sub_networks_written_out_by_hand():
    model, rule = perceptron().trainable_copy(), SandwichObjective(draws=3, seed=7)
    space = elastic_space(model)
    widths = sizes(rule.subnets(space, 0))
    assert widths[:2] == [8, 2]
    assert len(widths) == 5
    [mask] = [m for m in model.modules() if isinstance(m, UnitMask)]
    order = mask.place.argsort()
    first, second = (copy.deepcopy(model.get_submodule(name)) for name in ("0", "2"))
    total = torch.zeros((), dtype=torch.float64)
    for width in widths:
        kept = order[:width]
        hidden = F.relu(X @ first.weight[kept].T + first.bias[kept])
        total = total + F.cross_entropy(hidden @ second.weight[:, kept].T + second.bias, Y)
    total.backward()
    found = one_step(model, rule, task_of(X, batch_size=32))
    wanted = {
        f"{path}.{name}": p.grad
        for path, layer in (("0", first), ("2", second))
        for name, p in layer.named_parameters()
    }
    assert found.keys() == wanted.keys()
    for name, gradient in nonempty(wanted.items()):
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)


def test_widths_depths_and_kernels_add_up_as_separate_trainings_would():
    program, rule = residual(), SandwichObjective(draws=2, seed=1)
    space = elastic_space(program)
    assert space.depths
    assert space.kernels
    twin = program.trainable_copy().train()
    total = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for subnet in rule.subnets(space, 0).values():
        alone = copy.deepcopy(twin)
        activate(alone, subnet)
        F.cross_entropy(alone(IMAGES), Y).backward()
        for name, p in alone.named_parameters():
            total[name] += 0.0 if p.grad is None else p.grad
    found = one_step(program.trainable_copy(), rule, task_of(IMAGES, batch_size=32))
    for name, gradient in nonempty(total.items()):
        torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-13, msg=lambda m, n=name: n + m)
    assert any(name.startswith("fxsurgery_elastic") and gradient.any() for name, gradient in total.items())


def test_a_supernet_that_writes_into_its_inputs_gives_each_sub_network_the_same():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = lively(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double())

        def forward(self, x):
            return self.layers(x.mul_(2))

    program, rule = Elasticize()(capture(Doubling().eval(), X[:2].clone())).program, SandwichObjective(seed=1)
    twin, x = program.trainable_copy(), X.clone()
    for subnet in rule.subnets(elastic_space(twin), 0).values():
        activate(twin, subnet)
        F.cross_entropy(twin(X.clone()), Y).backward()
    found = one_step(program.trainable_copy(), rule, task_of(x, batch_size=32))
    for name, p in nonempty(twin.named_parameters()):
        torch.testing.assert_close(found[name], p.grad, rtol=1e-12, atol=1e-14)
    assert torch.equal(x, X)


def test_one_backward_pass_over_the_summed_losses_gives_the_same():
    rule = SandwichObjective(draws=2, seed=1)

    def at_once(model, batch):
        space, losses = elastic_space(model), []
        for subnet in rule.subnets(space, batch.step).values():
            activate(model, subnet)
            losses.append(batch.loss(batch.predict(model)))
        activate(model, space.largest)
        return sum(losses), {}

    found, wanted = (one_step(perceptron().trainable_copy(), which, task_of(X)) for which in (rule, at_once))
    for name, gradient in nonempty(wanted.items()):
        assert gradient.any(), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-14)


def learned(program, steps=6, keeper=None, objective=None, **options):
    model, progress = program.trainable_copy(), Progress.quiet()
    batch_size = options.pop("batch_size", 16)
    recipe = Recipe(steps=steps, optimizer=sgd(0.1), **options)
    hooks = Hooks(objective=objective or SandwichObjective(seed=5))
    fit(model, task_of(X, batch_size=batch_size), recipe, hooks=hooks, progress=progress, device="cpu", keeper=keeper)
    return model, progress.history


def test_batches_that_share_a_step_learn_what_one_large_batch_does():
    whole, split = learned(perceptron(), batch_size=32)[0], learned(perceptron(), batch_size=8, accumulate=4)[0]
    for one, other in nonempty(zip(whole.parameters(), split.parameters(), strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


class Kept:
    """Keeps the snapshot after step 3."""

    content = None

    def last(self):
        return None if self.content is None else torch.load(io.BytesIO(self.content), weights_only=True)

    def wants(self, step, steps):
        return step == 3 and self.content is None

    def keep(self, snapshot):
        torch.save(snapshot, buffer := io.BytesIO())
        self.content = buffer.getvalue()


def test_a_training_that_goes_on_draws_what_it_would_have_drawn():
    drawn, kept, ends = [], Kept(), []

    def noting(model, batch):
        [mask] = [m for m in model.modules() if isinstance(m, UnitMask)]
        drawn.append((batch.step, int((mask.place < mask.limit).sum())))
        return task_objective(model, batch)

    for keeper in (kept, kept, None):
        drawn.clear()
        ends.append(
            (learned(perceptron(), keeper=keeper, objective=SandwichObjective(seed=5, objective=noting)), [*drawn])
        )
    assert ends[0][1] == ends[2][1]
    assert ends[1][1] == [entry for entry in ends[0][1] if entry[0] >= 3]
    assert len({tuple(w for s, w in ends[0][1] if s == step) for step in range(6)}) > 1
    for models in nonempty(zip(*(end[0][0].parameters() for end in ends), strict=True)):
        assert torch.equal(models[0], models[1])
        assert torch.equal(models[0], models[2])


def test_each_sub_network_is_a_term_and_validation_scores_the_whole():
    program = perceptron()
    model, history = learned(program, steps=1, batch_size=32)
    before, rule = program.trainable_copy(), SandwichObjective(seed=5)
    losses = {}
    for name, subnet in rule.subnets(elastic_space(before), 0).items():
        activate(before, subnet)
        losses[name] = F.cross_entropy(before(X), Y).item()
    assert list(losses) == ["largest", "smallest", "random 1", "random 2"]
    assert history[0]["terms"] == pytest.approx(losses, rel=1e-12)
    assert history[0]["loss"] == pytest.approx(sum(losses.values()), rel=1e-12)
    assert is_largest(model)
    activate(model, Subnet())
    assert history[0]["metric"] == evaluate(model, task_of(X)).metric


def test_the_supernet_is_whole_again_after_an_error():
    def failing(model, batch):
        raise KeyError("stop")

    model = perceptron().trainable_copy()
    activate(model, elastic_space(model).smallest)
    with pytest.raises(KeyError, match="stop"):
        one_step(model, SandwichObjective(objective=failing), task_of(X))
    assert is_largest(model)


def test_sub_networks_learn_a_teachers_features():
    program = perceptron()
    teacher = capture(nn.Sequential(nn.Linear(4, 3)).double().eval(), X[:2])
    inner = FeatureDistillation(teacher, {"_2": "_0"}, weight=2.0)
    rule = SandwichObjective(draws=1, seed=2, objective=inner)
    twin = program.trainable_copy()
    total = torch.zeros((), dtype=torch.float64)
    for subnet in rule.subnets(elastic_space(twin), 0).values():
        activate(twin, subnet)
        output = twin(X)
        total = total + F.cross_entropy(output, Y) + 2 * F.mse_loss(output, teacher(X))
    total.backward()
    found = one_step(program.trainable_copy(), rule, task_of(X, batch_size=32))
    for name, p in nonempty(twin.named_parameters()):
        torch.testing.assert_close(found[name], p.grad, rtol=1e-12, atol=1e-14)


def test_what_is_no_supernet_is_refused():
    program = capture(nn.Sequential(nn.Linear(4, 3)).double().eval(), X[:2])
    with pytest.raises(SpecError, match="is no supernet; train one that Elasticize"):
        one_step(program.trainable_copy(), SandwichObjective(), task_of(X))
    with pytest.raises(SpecError, match="draws=-1"):
        SandwichObjective(draws=-1)


def test_examples():
    found = doctest.testmod(sandwich)
    assert (found.failed, found.attempted > 0) == (0, True)
