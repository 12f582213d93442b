"""The estimate of a plan: what is timed is warm, and every part of a run is counted. No test looks at a real clock."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module

import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Dnal, Ectonas, Prune, Spend, time_estimate
from fxsurgery.plan import Plan
from fxsurgery.searchers.common.latency_model import LatencyModel
from fxsurgery.searchers.common.widths import space
from fxsurgery.searchers.session import Stage
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.time_estimate import (
    LONG_STEP_SECONDS,
    MAX_STEPS,
    RETRIES,
    BatchCounts,
    StepTime,
    Stopwatch,
    latency_time,
    range_test_time,
    score_time,
    stage_time,
    synthesis_time,
)
from fxsurgery.training import Amount
from fxsurgery.training.rate_range import STEPS as RANGE_STEPS
from nonempty import nonempty
from programs import program

IMPORTS_S, START_S, STEP_S, FORWARD_S = 4.0, 0.25, 0.02, 0.005
"""What a fake machine takes: once for the imports of a first call, for the start of a training, a step, and a batch."""


@dataclass
class Machine:
    """A clock that moves only when work is done, and work of known durations."""

    now: float = 0.0
    step_s: float = STEP_S
    cold: set[str] = field(default_factory=lambda: {"fit", "evaluate"})
    taken: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def begin(self, what: str) -> None:
        self.now += IMPORTS_S if what in self.cold else 0.0
        self.cold.discard(what)

    def take(self, steps: int, after_step: Callable) -> None:
        self.begin("fit")
        self.now += START_S
        self.taken.append(steps)
        for _ in range(steps):
            self.now += self.step_s
            after_step(None)


def test_the_first_call_with_its_imports_is_not_timed():
    machine = Machine()
    found = Stopwatch(machine.clock).training(machine.take)
    assert (found.step, found.start) == (pytest.approx(STEP_S), pytest.approx(START_S))
    assert found.seconds(400) == pytest.approx(START_S + 400 * STEP_S)
    assert found.seconds(400) < IMPORTS_S * 4  # the fault: 400 times the first step, half an hour
    assert found.seconds(400, trainings=10) == pytest.approx(10 * START_S + 400 * STEP_S)


@pytest.mark.parametrize(("step_s", "steps"), [(0.001, MAX_STEPS), (0.05, 20), (LONG_STEP_SECONDS + 0.1, 1), (30.0, 1)])
def test_short_steps_are_averaged_and_long_ones_taken_few_times(step_s: float, steps: int):
    machine = Machine(step_s=step_s)
    assert Stopwatch(machine.clock).training(machine.take).step == pytest.approx(step_s)
    assert machine.taken[:2] == [1, 2]
    assert machine.taken[2:] in ([[]] if steps == 1 else [[steps + 1], [steps + 2]])


def test_of_two_calls_the_second_is_timed():
    machine = Machine()

    def work() -> None:
        machine.begin("evaluate")
        machine.now += FORWARD_S

    assert Stopwatch(machine.clock).call(work) == pytest.approx(FORWARD_S)


COUNTS = BatchCounts(train=30, val=7, test=11)


@pytest.mark.parametrize(
    ("stage", "batches"),
    [
        (Stage("a", 100), 7 * (3 + 1)),
        (Stage("few epochs", 29), 7),
        (Stage("many epochs", 10_000), 7 * (5 + 1)),
        (Stage("none", 100, validations=0), 7),
        (Stage("said", 100, validations=12), 7 * (12 + 1)),
        (Stage("batch norms", 29, recalibrates=True), 7 + 30),
    ],
)
def test_a_stage_takes_its_steps_its_validations_and_its_batch_norms(stage: Stage, batches: int):
    seconds = stage_time(stage, StepTime(STEP_S, START_S), FORWARD_S, COUNTS, steps_per_epoch=30)
    assert seconds == pytest.approx(START_S + stage.steps * STEP_S + batches * FORWARD_S)


def test_at_most_a_hundred_batches_re_estimate_the_batch_norms():
    stage = Stage("fine-tune", 1, validations=0, recalibrates=True)
    assert stage_time(stage, StepTime(), FORWARD_S, replace(COUNTS, train=9000), 30) == pytest.approx(107 * FORWARD_S)


def test_the_original_is_scored_and_both_networks_on_the_test_data():
    assert score_time(FORWARD_S, COUNTS) == pytest.approx((7 + 2 * 11) * FORWARD_S)


def test_the_learning_rate_of_each_kind_of_stage_is_tested_once():
    stages = [
        Stage(name, 9) for name in ("weights", "architecture", "fine-tune, round 1 of 2", "fine-tune, round 2 of 2")
    ]
    training = StepTime(STEP_S, START_S)
    one = START_S + RANGE_STEPS * STEP_S
    assert range_test_time(stages, training, Prune()) == pytest.approx(2 * one)
    assert range_test_time(stages[1:3], training, Prune()) == pytest.approx(one)
    assert range_test_time(stages, training, Prune(learning_rate=0.1)) == 0
    assert range_test_time([Stage("search", 9), Stage("fine-tune", 9)], training, Ectonas()) >= one


@dataclass
class FakeTimer:
    """Counts measurements, on the clock of a machine."""

    machine: Machine
    exported: list = field(default_factory=list)
    original_latency: tuple[float, int] = (1.0, 1)

    def ratio(self, measured, *, thorough: bool):
        self.machine.now += 10.0 if thorough else 3.0 + (IMPORTS_S if not self.exported else 0.0)
        self.exported.append(next(iter(measured.graph_module.parameters())).detach().clone())
        return 1.0, 1.0, 1.0


def test_latencies_are_measured_warm_and_on_networks_that_were_not_exported_before():
    machine, start = Machine(), program("Plain")
    found = space(start, align=4)
    timer = FakeTimer(machine)
    seconds = latency_time(Stopwatch(machine.clock), LatencyModel(timer=timer, original=start), found, 0)
    blocks = sum(len(choice.counts) - 1 for choice in found.choices)
    assert seconds == pytest.approx(RETRIES * (math.ceil(math.log2(blocks + 1)) * 3.0 + 10.0) + 10.0)
    assert len({tuple(weight.flatten().tolist()) for weight in nonempty(timer.exported)}) == len(timer.exported)
    evolving = latency_time(Stopwatch(machine.clock), LatencyModel(timer=timer, original=start), None, 40)
    assert evolving == pytest.approx(40 * 3.0)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(16, 4))


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.linspace(-1, 1, count * 3 * 64).reshape(count, 3, 8, 8), torch.arange(count) % 4


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine on which the real training loop takes known times; the real clock does not count."""
    made, fit, evaluate = Machine(), time_estimate.fit, time_estimate.evaluate

    def timed_fit(*args, hooks, **options):
        def after(info) -> None:
            made.now += made.step_s
            hooks.after_step(info)

        made.begin("fit")
        made.now += START_S
        return fit(*args, hooks=replace(hooks, after_step=after), **options)

    def timed_evaluate(model, task, **options):
        made.begin("evaluate")
        made.now += FORWARD_S * task.val_batches
        return evaluate(model, task, **options)

    monkeypatch.setattr(time_estimate, "fit", timed_fit)
    monkeypatch.setattr(time_estimate, "evaluate", timed_evaluate)
    monkeypatch.setattr(import_module("fxsurgery.optimize"), "Stopwatch", lambda: Stopwatch(made.clock))
    return made


JOB = {"train_data": images(64), "val_data": images(32), "batch_size": 16, "verbose": False}


def forecast(plan: Plan) -> dict[str, float]:
    return {stage.name: seconds for stage, seconds in zip(plan.stages, plan.stage_seconds, strict=True)}


@pytest.mark.parametrize("config", [Dnal(), Prune()])
def test_a_plan_in_a_cold_process_has_the_right_order(machine: Machine, config):
    plan = fxsurgery.plan(net(), **JOB, config=config, budget=Budget(macs=0.6))
    stage = plan.stages[-1]
    batches = 2 * 6 + 4
    assert forecast(plan)["fine-tune"] == pytest.approx(START_S + stage.steps * STEP_S + batches * FORWARD_S)
    tested = START_S + RANGE_STEPS * STEP_S
    assert plan.seconds == pytest.approx(sum(plan.stage_seconds) + 2 * FORWARD_S + tested)
    given = fxsurgery.plan(net(), **JOB, config=replace(config, learning_rate=0.01), budget=Budget(macs=0.6))
    assert given.seconds == pytest.approx(plan.seconds - tested)
    assert f"stage fine-tune: {stage.steps} steps, about 0:04" in str(plan)


def test_a_search_of_many_networks_starts_many_trainings(machine: Machine):
    plan = fxsurgery.plan(net(), **JOB, config=Ectonas(match_epochs=2), spend=Spend(epochs=40))
    [stage] = plan.stages
    assert (stage.steps, stage.trainings) == (160, 20)
    assert plan.stage_seconds[0] == pytest.approx(20 * START_S + 160 * STEP_S + 2 * 41 * FORWARD_S)


def test_a_plan_for_several_networks_at_once_says_what_the_estimate_is_of(machine: Machine):
    options = {**JOB, "config": Ectonas(match_epochs=2), "spend": Spend(epochs=40)}
    note = "the estimated time is that of one network at a time; executor='processes' trains several at once"
    assert note in fxsurgery.plan(net(), **options, executor="processes", workers=2).notes
    assert note not in fxsurgery.plan(net(), **options).notes


def test_a_limit_in_seconds_caps_the_estimate(machine: Machine):
    config = Ectonas(match_epochs=2)
    assert fxsurgery.plan(net(), **JOB, config=config, spend=Spend(epochs=40, seconds=2)).seconds == 2
    assert fxsurgery.plan(net(), **JOB, config=config, spend=Spend(seconds=7)).seconds == 7


def test_the_making_of_inputs_is_timed_by_steps_of_its_own(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Amount, "affordable", lambda _: Amount(samples=96, validation=32, steps=20, batch_size=48))
    plan = fxsurgery.plan(net(), config=Prune(), verbose=False)
    assert [(stage.name, stage.steps, stage.trainings) for stage in plan.stages[:1]] == [("synthetic inputs", 60, 3)]
    assert forecast(plan)["synthetic inputs"] == pytest.approx(3 * START_S + 60 * STEP_S + FORWARD_S)
    sizes = list[int]()
    real = time_estimate.fit

    def watched(model, *args, **options):
        sizes.append(len(model.moved[0]))
        return real(model, *args, **options)

    monkeypatch.setattr(time_estimate, "fit", watched)
    amount = Amount(samples=96, validation=32, steps=20, batch_size=48)
    start = fxsurgery.inspect(net(), images(2)[0]).program
    assert synthesis_time(Stopwatch(machine.clock), Trainer(), start, amount).step == pytest.approx(STEP_S)
    assert set(sizes) == {48}
    no_norms = fxsurgery.inspect(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), torch.ones(2, 3)).program
    assert synthesis_time(Stopwatch(machine.clock), Trainer(), no_norms, amount) == StepTime()


def test_a_plan_leaves_the_model_as_it_was(machine: Machine):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fxsurgery.plan(model, **JOB, config=Prune(learning_rate=1e3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in nonempty(model.state_dict().items()))
