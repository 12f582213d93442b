"""Pruning by simple importances: never over budget, the same for the same seed, and training just what it said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from devices import Device, milliseconds
from fxsurgery import Budget, Task, capture
from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.importance import magnitude
from fxsurgery.analysis.structure import structure
from fxsurgery.errors import BudgetError, StructureError, SurgeryError, TrainingError
from fxsurgery.passes import replay
from fxsurgery.program import Program
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.latency_model import LatencyModel
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.widths import space
from fxsurgery.searchers.prune import IMPORTANCES, Prune, _require_finite, needs_data, search, stages, widths
from fxsurgery.searchers.session import SearchOutcome, Session
from fxsurgery.searchers.trainer import Trainer
from nonempty import nonempty
from programs import program
from zoo import CLASSES, example

QUICK = {"align": 1, "finetune_epochs": 1, "fewest_steps": 2, "most_steps": 20, "taylor_batches": 2}


def quick(**settings: object) -> Prune:
    return Prune(**{**QUICK, **settings})


def task(start: Program, classes: int = CLASSES, count: int = 64) -> Task:
    """Inputs like the examples of a program, and random classes."""
    generator = torch.Generator().manual_seed(0)
    given = start.example_inputs[0]
    x = torch.randn(count, *given.shape[1:], generator=generator)
    y = torch.randint(classes, (count,), generator=generator)
    return Task.of((x, y), (x, y), batch_size=16)


def small() -> Program:
    """A net of two convolutions and batch norms, eight and twelve wide, whose scales differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cells = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()]
        model = nn.Sequential(*cells, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES))
        for norm in (model[1], model[4]):
            nn.init.uniform_(norm.weight, 0.2, 2.0)
    return capture(model.eval(), example("Plain"))


def searched(start: Program, config: Prune, budget: Budget, seed: int = 0) -> tuple[SearchOutcome, Session]:
    session = Session(task(start), Trainer(seed))
    return search(start, budget, config, session, trained=True), session


def state(of: Program) -> list[Tensor]:
    return [*of.graph_module.state_dict().values()]


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize(
    ("rounds", "scope", "align"), [(1, "global", 1), (1, "local", 2), (3, "global", 2), (2, "local", 4)]
)
def test_never_exceeds_the_budget(importance: str, rounds: int, scope: str, align: int):
    start, budget = small(), Budget(macs=0.45, params=0.6)
    outcome, session = searched(start, quick(importance=importance, rounds=rounds, scope=scope, align=align), budget)
    for _, offered in nonempty(session.offered):
        assert budget.holds(cost(offered), cost(start))
        assert all(m.out_channels % align == 0 for _, m in nonempty(offered.calls(nn.Conv2d)))
    assert outcome.program in [offered for _, offered in session.offered]
    assert replay(outcome.program.log, start).text() == outcome.program.text()


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize(("rounds", "trained"), [(1, True), (3, False)])
def test_trains_what_it_said(importance: str, rounds: int, trained: bool):
    start, config = small(), quick(importance=importance, rounds=rounds, weights_epochs=1, learning_rate=0.02)
    session = Session(task(start))
    said = stages(config, session, trained=trained)
    search(start, Budget(macs=0.5), config, session, trained=trained)
    done = {record["stage"]: record["steps"] for record in session.trainer.progress.history}
    assert [(stage.name, stage.steps) for stage in nonempty(said)] == list(done.items())
    assert sum(stage.recalibrates for stage in said) == rounds


def test_rounds_share_the_epochs_of_fine_tuning():
    start = small()
    session = Session(task(start, count=640))
    one, three = ({s.name: s.steps for s in stages(c, session, trained=True)} for c in (many(1), many(3)))
    assert one == {"fine-tune": 400}
    assert list(three.values()) == [100, 100, 200]


def many(rounds: int) -> Prune:
    return Prune(finetune_epochs=10, rounds=rounds, fewest_steps=1)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_the_same_seed_ends_the_same(importance: str):
    config = quick(importance=importance, rounds=2)
    first, second = (searched(small(), config, Budget(macs=0.5), seed=5)[0] for _ in range(2))
    assert first.program.log == second.program.log
    assert all(torch.equal(a, b) for a, b in nonempty(zip(state(first.program), state(second.program), strict=True)))


def test_random_differs_by_seed():
    logs = {searched(small(), quick(importance="random"), Budget(macs=0.5), seed)[0].program.log for seed in range(4)}
    assert len(logs) > 1


def test_taylor_alone_needs_data():
    assert "train_data" in str(needs_data(Prune(importance="taylor")))
    assert all(nonempty(needs_data(Prune(importance=other)) is None for other in IMPORTANCES if other != "taylor"))


@pytest.mark.parametrize("importance", ["magnitude", "bn-gamma"])
def test_what_matters_least_by_far_goes_first(importance: str):
    start = small()
    model = start.trainable_copy()
    weak = [1, 4, 6, 7]
    with torch.no_grad():
        for name in ("0.weight", "1.weight"):
            model.get_parameter(name)[weak] *= 1e-3
        model.get_parameter("3.weight")[:, weak] *= 1e-3
    outcome, _ = searched(start.with_weights(model), quick(importance=importance), Budget(macs=0.6))
    first = outcome.program.log[0]
    assert "'0', (1, 4, 6, 7)" in first


def test_taylor_leaves_what_the_loss_does_not_feel():
    """Channels whose columns in the next layer are zero have no gradient, and move no loss."""
    start = small()
    model = start.trainable_copy()
    dead = [0, 2, 5, 7]
    with torch.no_grad():
        model.get_parameter("3.weight")[:, dead] = 0.0
    outcome, _ = searched(start.with_weights(model), quick(importance="taylor"), Budget(macs=0.6))
    assert "'0', (0, 2, 5, 7)" in outcome.program.log[0]


def test_looking_for_taylor_leaves_the_program_as_it_was():
    start = small()
    before = [tensor.clone() for tensor in state(start)]
    config = quick(importance="taylor", finetune_epochs=0)
    outcome, _ = searched(start, config, Budget(macs=0.5))
    assert all(torch.equal(a, b) for a, b in nonempty(zip(before, state(start), strict=True)))
    assert not [name for name, _ in outcome.program.graph_module.named_buffers() if "fxsurgery" in name]


def test_local_takes_the_same_share_of_each_layer():
    start = small()
    outcome, _ = searched(start, quick(scope="local"), Budget(macs=0.4))
    shares = [m.out_channels / width for (_, m), width in zip(outcome.program.calls(nn.Conv2d), (8, 12), strict=True)]
    assert abs(shares[0] - shares[1]) < 1 / 8 + 1 / 12


def test_magnitudes_are_compared_over_their_mean_unless_told_otherwise():
    """A layer whose weights are a hundred times smaller is not cut to the least for it."""
    start = small()
    model = start.trainable_copy()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(0.01)
        model.get_parameter("3.weight").mul_(0.01)
        model.get_parameter("8.weight").mul_(100)
    shifted = start.with_weights(model)
    first = {
        flag: next(m for _, m in searched(shifted, quick(normalize=flag), Budget(macs=0.3))[0].program.calls(nn.Conv2d))
        for flag in (True, False)
    }
    assert first[False].out_channels < first[True].out_channels
    assert (
        magnitude(shifted)[structure(shifted).named("0").units].max()
        < magnitude(shifted)[structure(shifted).named("3").units].min()
    )


def test_iterative_approaches_the_budget_in_equal_ratios():
    start = small()
    config = quick(rounds=3, finetune_epochs=0)
    outcome, _ = searched(start, config, Budget(macs=0.3))
    macs = [cost(replay(outcome.program.log[:n], start)).macs / cost(start).macs for n in (1, 2, 3)]
    for number, found in enumerate(macs, 1):
        assert 0.3 ** (number / 3) * 0.7 < found <= 0.3 ** (number / 3)


@pytest.mark.parametrize("rounds", [1, 3])
def test_latency_is_approached_as_measured(rounds: int):
    start = small()
    allowed = 0.4 * milliseconds(start)
    budget = Budget(latency_ms=allowed)
    session = Session(task(start), Trainer(), LatencyModel(timer=Device(start), original=start, budget=budget))
    outcome = search(start, budget, quick(rounds=rounds), session, trained=True)
    found = [milliseconds(replay(outcome.program.log[:n], start)) for n in range(1, rounds + 1)]
    for number, latency in nonempty(enumerate(found, 1)):
        wanted = milliseconds(start) * 0.4 ** (number / rounds)
        assert 0.7 * wanted < latency <= wanted


def test_more_rounds_than_steps_to_take_do_no_harm():
    outcome, session = searched(small(), quick(rounds=5, align=4), Budget(macs=0.35))
    assert cost(outcome.program).macs <= 0.35 * cost(small()).macs
    assert len(session.offered) == 2


class Interleaved(nn.Module):
    """Every other channel goes one way: the first cut leaves a choice of channels that no second one goes through."""

    def __init__(self):
        super().__init__()
        self.stem, self.even, self.odd = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.even(x[:, ::2]) + self.odd(x[:, 1::2])).relu()).mean((2, 3))


def test_a_round_that_cannot_go_on_says_to_take_one():
    start = capture(Interleaved().eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(BudgetError, match=r"what round 1 left cannot be cut as far: .*Pass rounds=1"):
        searched(start, quick(rounds=2, align=4), Budget(macs=0.5))
    searched(start, quick(align=4), Budget(macs=0.5))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_what_cannot_be_reached_is_refused_before_training(importance: str):
    session = Session(task(small()))
    with pytest.raises(BudgetError, match="cannot be reached: the least is"):
        search(small(), Budget(macs=0.001), quick(importance=importance), session, trained=False)
    assert not session.trainer.progress.history


def test_no_budget_is_refused():
    with pytest.raises(BudgetError, match="needs a budget"):
        search(small(), None, quick(), Session(task(small())), trained=True)


def test_bn_gamma_leaves_alone_what_no_batch_norm_scales_and_says_so():
    start = program("Grouped")
    outcome, _ = searched(start, quick(importance="bn-gamma"), Budget(macs=0.75))
    assert any(note.startswith("1 widths stay, since no batch norm scales them: b") for note in outcome.notes)
    with pytest.raises(StructureError, match="no batch norm scales the channels of a"):
        widths(program("NoNorm"), quick(importance="bn-gamma"))


@pytest.mark.parametrize(
    "wrong",
    [{"importance": "gamma"}, {"scope": "layer"}, {"rounds": 0}, {"taylor_batches": 0}, {"order": 0}, {"between": 2}],
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, object]):
    with pytest.raises(SurgeryError):
        Prune(**wrong)


def test_reaches_the_hidden_width_of_a_transformer():
    start = program("Attention")
    found = widths(start, quick())
    assert found.smallest().macs < 0.3 * space(start, align=1).smallest().macs
    budget = Budget(macs=0.3)
    with pytest.raises(BudgetError):
        require_reachable(space(start, align=1), budget)
    outcome, _ = searched(start, quick(), budget)
    assert cost(outcome.program).macs <= 0.3 * cost(start).macs
    assert next(m for _, m in outcome.program.calls(nn.LayerNorm)).normalized_shape[0] < 8


class Reader(nn.Module):
    """A recurrent net: (batch, 5 steps, 6 features)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(6, 10, batch_first=True), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def reader() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(Reader().eval(), torch.linspace(-1, 1, 60).reshape(2, 5, 6))


NETS = {
    "residual": lambda: program("Residual"),
    "concatenating": lambda: program("DenseCat"),
    "depthwise": lambda: program("InvertedResidual"),
    "grouped": lambda: program("Grouped"),
    "transformer": lambda: program("Attention"),
    "group norm": lambda: program("GroupNormNet"),
    "recurrent": reader,
}


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("name", NETS)
def test_goes_all_the_way_on(name: str, importance: str):
    start = NETS[name]()
    config = quick(importance=importance, rounds=2, fewest_steps=20, learning_rate=0.01)
    outcome, _ = searched(start, config, Budget(macs=0.4))
    assert cost(outcome.program).macs <= 0.4 * cost(start).macs
    before, after = start.run_examples(), outcome.program.run_examples()
    assert [t.shape for t in nonempty(before)] == [t.shape for t in after]
    assert np.isfinite(outcome.after.metric)


def killed_after(calls: int) -> Task:
    """A task whose loss is interrupted at the call after so many."""
    left = [calls]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, target)

    given = task(small())
    return Task(given.train_data, given.val_data, loss=loss)


@pytest.mark.parametrize("calls", [6, 9, 13, 21])
def test_a_killed_run_goes_on_to_the_same_end(calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fxsurgery.runs.run_directory.SNAPSHOT_SECONDS", 0.0)
    config, budget = quick(importance="taylor", rounds=2, taylor_batches=4), Budget(macs=0.5)

    def run(what: Task, path: Path, *, resume: bool) -> SearchOutcome:
        with_run = Trainer(run=RunDir.open(path, {}, resume=resume))
        return search(small(), budget, config, Session(what, with_run), trained=True)

    straight = run(killed_after(10**6), tmp_path / "straight", resume=False)
    with pytest.raises(KeyboardInterrupt):
        run(killed_after(calls), tmp_path / "killed", resume=False)
    resumed = run(killed_after(10**6), tmp_path / "killed", resume=True)
    assert resumed.program.log == straight.program.log
    assert all(
        torch.equal(a, b) for a, b in nonempty(zip(state(resumed.program), state(straight.program), strict=True))
    )


def test_importances_that_are_not_finite_are_refused():
    start = program("Plain")
    with pytest.raises(
        TrainingError, match=r"the magnitude importance of the channels of .* is not finite: .*lower order"
    ):
        _require_finite(widths(start, Prune(align=1)), np.full(structure(start).size, np.inf), Prune(align=1))
