"""Training in half precision: really so, with full-precision results."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from torch import fx, nn

from fxsurgery import Budget
from fxsurgery.analysis.cost import mac_terms
from fxsurgery.analysis.gating import gate_plan
from fxsurgery.capture import capture
from fxsurgery.errors import DeviceError
from fxsurgery.nn.gates import GateVector
from fxsurgery.passes import InsertGates
from fxsurgery.searchers.dnal.budget_controller import BudgetController, Limit
from fxsurgery.training import Hooks, Recipe, Task, adamw, evaluate, fit, sgd, task_objective
from nonempty import nonempty

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4),
        )  # fmt: skip


def task(**options):
    x = torch.randn(96, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = (2 * (x.mean((1, 2, 3)) > 0) + (x[:, 0, 0, 0] > 0)).long()
    return Task.of((x, y), (x, y), batch_size=32, **options)


def trained(precision, device="cpu", steps=30, hooks=None, model=None):
    model = model or fx.symbolic_trace(net())
    recipe = Recipe(steps=steps, optimizer=adamw(0.01), mixed_precision=precision)
    return model, fit(model, task(), recipe, hooks=hooks, device=device)


def test_in_bfloat16_layers_compute_so_and_all_else_is_full():
    model, dtypes = fx.symbolic_trace(net()), {"inside": set(), "loss": set(), "state": set(), "gradient": set()}
    linear = model.get_submodule("8")
    linear.register_forward_hook(
        lambda module, given, output: dtypes["inside"].add((module.training, given[0].dtype, output.dtype))
    )

    def loss(output, target):
        dtypes["loss"].add(output.dtype)
        return nn.functional.cross_entropy(output, target)

    hooks = Hooks(before_step=lambda _: dtypes["gradient"].add(linear.weight.grad.dtype))
    recipe = Recipe(steps=2, optimizer=sgd(0.1), mixed_precision="bf16", validations=1)
    fit(model, task(loss=loss), recipe, hooks=hooks, device="cpu")
    half, full = torch.bfloat16, torch.float32
    assert dtypes["inside"] == {(True, half, half), (False, full, full)}
    assert dtypes["loss"] == dtypes["gradient"] == {full}
    assert {p.dtype for p in model.parameters()} == {full}
    assert model(torch.zeros(2, 1, 6, 6)).dtype == full


def test_bfloat16_learns_what_full_precision_learns():
    (one, full), (other, half) = trained("no"), trained("bf16")
    assert half.loss == pytest.approx(full.loss, abs=0.1)
    assert half.score.metric == pytest.approx(full.score.metric, abs=0.1)
    assert half.score.metric > 0.7
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (one, other)]
    assert 0 < (weights[0] - weights[1]).norm() < 0.2 * weights[0].norm()


def test_scores_on_the_way_are_in_full_precision():
    model, report = trained("bf16", steps=3)
    assert report.score == evaluate(model, task())


def test_nothing_is_left_on_the_model():
    model = fx.symbolic_trace(net())
    before = set(vars(model))
    trained("bf16", steps=1, model=model)
    assert set(vars(model)) == before
    assert copy.deepcopy(model)(torch.zeros(2, 1, 6, 6)).dtype == torch.float32


def test_a_penalty_is_computed_in_full_precision():
    model, dtypes = fx.symbolic_trace(net()), set()

    def penalized(model, batch):
        value = (model.get_parameter("8.weight") @ torch.ones(144)).abs().sum()
        dtypes.add(value.dtype)
        return batch.loss(batch.predict(model)) + value, {"penalty": value}

    _, report = trained("bf16", steps=2, hooks=Hooks(objective=penalized), model=model)
    assert dtypes == {torch.float32}
    assert math.isfinite(report.loss)


def steered(precision, device="cpu"):
    """Gates at the end of a short steered search, and the course of the expected cost."""
    program = capture(net().eval(), torch.zeros(2, 1, 6, 6))
    plan = gate_plan(program)
    model = InsertGates()(program).program.trainable_copy()
    [vector] = [m for m in model.modules() if isinstance(m, GateVector)]
    vector.mode = "soft"
    limit = Limit(mac_terms(program).expected(plan), Budget(macs=0.5).macs)
    steering = BudgetController(vector, [limit])
    hooks = Hooks(before_step=steering.before_step, after_step=steering.after_step)
    recipe = Recipe(steps=60, optimizer=sgd(1 / 60), mixed_precision=precision)
    fit(model, task(), recipe, parameters=[vector.logits], hooks=hooks, device=device)
    return torch.sigmoid(vector.sharpness * vector.logits).detach(), steering.trace


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=cuda)])
def test_gates_are_steered_to_the_budget_as_in_full_precision(precision):
    device = "cpu" if precision == "bf16" else "cuda"
    gates, trace = steered(precision, device)
    assert gates.isfinite().all()
    assert ((gates < 0.1) | (gates > 0.9)).float().mean() > 0.8
    assert trace[-1][1] == pytest.approx(steered("no", device)[1][-1][1], abs=0.1)
    assert all(nonempty(math.isfinite(x) for entry in trace for x in entry))


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(DeviceError, match=r"fp16 needs .* which cpu does not do; use mixed_precision='bf16'"):
        trained("fp16", steps=1)


@cuda
def test_float16_learns_on_a_gpu_and_hooks_see_no_gradient_that_is_not_finite():
    seen = []
    model = fx.symbolic_trace(net())
    weight = model.get_parameter("8.weight")
    hooks = Hooks(before_step=lambda info: seen.append((info.step, bool(weight.grad.isfinite().all()))))
    _, full = trained("no", "cuda")
    _, half = trained("fp16", "cuda", hooks=hooks, model=model)
    assert half.loss == pytest.approx(full.loss, abs=0.1)
    assert len(seen) > 20
    assert all(finite for _, finite in nonempty(seen))


def test_a_users_accelerator_says_the_precision_and_stays_as_it_was():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        model, kinds = fx.symbolic_trace(net()), set()
        model.get_submodule("8").register_forward_hook(lambda m, i, output: kinds.add((m.training, output.dtype)))
        fit(model, task(), Recipe(steps=1, optimizer=sgd(0.1)), device=accelerator)
        assert {dtype for training, dtype in nonempty(kinds) if training} == {torch.bfloat16}
        assert not accelerator._models
        assert not accelerator._optimizers
    finally:
        accelerator.state._reset_state(reset_partial_state=True)


@pytest.fixture
def scaling():
    """An `Accelerator` for fp16 whose first scales are too large, on a CPU."""
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)
    yield accelerator
    accelerator.state._reset_state(reset_partial_state=True)


def dense():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 4))


def test_steps_that_loss_scaling_skips_are_kept_from_hooks(scaling):
    model, before, after, kinds = dense(), [], [], set()
    model[3].register_forward_hook(lambda module, given, output: kinds.add((module.training, output.dtype)))
    weight, moved = model[3].weight, [model[3].weight.detach().clone()]

    def after_step(info):
        after.append(info.step)
        moved.append(weight.detach().clone())

    hooks = Hooks(
        before_step=lambda info: before.append((info.step, bool(weight.grad.isfinite().all()))), after_step=after_step
    )
    recipe = Recipe(steps=40, optimizer=sgd(0.1), gradient_clip=1.0, validations=1)
    report = fit(model, task(), recipe, hooks=hooks, device=scaling)
    steps = [step for step, _ in before]
    assert kinds == {(True, torch.float16), (False, torch.float32)}
    assert all(finite for _, finite in nonempty(before))
    assert after == list(range(40))
    assert 0 < steps[0] < len(steps) < 40
    assert [not torch.equal(*pair) for pair in pairwise(moved)] == [step in steps for step in range(40)]
    plain_model = dense()
    full = fit(plain_model, task(), Recipe(steps=len(steps), optimizer=sgd(0.1), gradient_clip=1.0), device="cpu")
    assert report.loss == pytest.approx(full.loss, abs=0.1)


def test_gradients_of_several_losses_are_scaled_alike(scaling):
    def apart(model, batch):
        batch.backward(0.5 * batch.loss(batch.predict(model)))
        return 0.5 * batch.loss(batch.predict(model)), {}

    ends, recipe, fresh = [], Recipe(steps=12, optimizer=sgd(0.1)), scaling.scaler.state_dict()
    for objective in (apart, task_objective):
        scaling.scaler = torch.amp.GradScaler("cpu", init_scale=fresh["scale"] / 2**10, growth_interval=4)
        model = dense()
        fit(model, task(), recipe, hooks=Hooks(objective=objective), device=scaling)
        ends.append((list(model.parameters()), scaling.scaler.get_scale()))
    assert ends[0][1] == ends[1][1]
    for one, other, before in nonempty(zip(ends[0][0], ends[1][0], dense().parameters(), strict=True)):
        assert not torch.equal(other, before)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_loss_scale_is_in_snapshots(scaling):
    class Kept:
        snapshot = None

        def last(self):
            return self.snapshot

        def wants(self, step, steps):
            return step == 9 and self.snapshot is None

        def keep(self, snapshot):
            self.snapshot = copy.deepcopy(snapshot)

    kept, ends, fresh = Kept(), [], scaling.scaler.state_dict()
    for _ in range(2):
        scaling.scaler = torch.amp.GradScaler("cpu", init_scale=fresh["scale"], growth_interval=4)
        model = dense()
        fit(model, task(), Recipe(steps=20, optimizer=sgd(0.1)), device=scaling, keeper=kept)
        ends.append(([p.detach() for p in model.parameters()], scaling.scaler.state_dict()))
    assert kept.snapshot["scaler"]["scale"] < fresh["scale"]
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(a, b) for a, b in zip(nonempty(ends[0][0]), ends[1][0], strict=True))
