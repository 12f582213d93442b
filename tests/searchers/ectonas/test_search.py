"""The whole search through the front door, on small networks and few images."""

import copy
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxsurgery
from fxsurgery import Budget, Ectonas, Result, Spend
from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.peak_memory import peak_activation_bytes
from fxsurgery.capture import capture
from fxsurgery.errors import BudgetError, PassCrashedError, StructureError, SurgeryError, TrainingError
from fxsurgery.execution import JobRunner
from fxsurgery.passes import Widen, replay
from fxsurgery.searchers.common.moves import OPERATIONS
from fxsurgery.searchers.ectonas import population as populations
from fxsurgery.searchers.ectonas.evolution_loop import EvolutionLoop
from fxsurgery.searchers.ectonas.start_nets import start_net
from fxsurgery.training import adamw
from nonempty import nonempty

BATCH, TRAIN = 16, 96
EPOCH = TRAIN // BATCH
QUICK = Ectonas(weights_epochs=1, match_epochs=1, rounds=2, rolling_epochs=2, places=2, learning_rate=0.05)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four classes, told by where the light is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    x = torch.randn(count, 1, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        x[i, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1.0
    return x, labels


def cnn(seed: int = 0) -> nn.Module:
    return start_net("medium", convolutions=True, input_shape=(1, 8, 8), classes=4, seed=seed)


def ffnn(seed: int = 0) -> nn.Module:
    return start_net("medium", convolutions=False, input_shape=(1, 8, 8), classes=4, seed=seed)


def evolved(model: nn.Module, config: Ectonas = QUICK, epochs: float = 30, **options) -> Result:
    given = {
        "train_data": images(TRAIN, 1), "val_data": images(48, 2), "trained": False, "spend": Spend(epochs=epochs),
        "config": config, "verbose": False, "batch_size": BATCH, "device": "cpu",
    }  # fmt: skip
    return fxsurgery.optimize(model, **{**given, **options})


def weights(result: Result) -> dict[str, Tensor]:
    return {**dict(result.model.named_parameters()), **dict(result.model.named_buffers())}


def same(one: Result, other: Result) -> bool:
    mine, theirs = weights(one), weights(other)
    alike = mine.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in mine.items())
    return alike and one.log == other.log and one.search == other.search


class Counted(JobRunner):
    """Counts the steps that are trained."""

    steps = 0

    def run(self, jobs, *args, **options):
        Counted.steps += sum(job.recipe.steps for job in jobs)
        return super().run(jobs, *args, **options)


@pytest.mark.parametrize(
    ("epochs", "finetune"), [(e, f) for e in (1, 1.2, 5, 13.7, 33) for f in (0, 2) if e >= 1 + f]
)  # less is not enough for the warm-up
def test_never_overspends(epochs: float, finetune: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fxsurgery.preparation, "JobRunner", Counted)
    Counted.steps = 0
    result = evolved(cnn(), replace(QUICK, finetune_epochs=finetune), epochs)
    told = result.search
    assert told.spent * EPOCH == pytest.approx(Counted.steps)
    assert told.spent <= told.allowed == epochs
    assert told.finetuned == finetune


def test_jobs_tell_how_long_they_take_beside_each_other(monkeypatch: pytest.MonkeyPatch):
    batches = []

    class Noting(JobRunner):
        def run(self, jobs, *args, **options):
            batches.append([(job.work, job.recipe.steps, cost(job.program).macs) for job in jobs])
            return super().run(jobs, *args, **options)

    monkeypatch.setattr(fxsurgery.preparation, "JobRunner", Noting)
    evolved(cnn(), epochs=12)
    assert len(batches) == 2  # the warm-up, and a round
    assert all(nonempty(work == steps * macs > 0 for batch in batches for work, steps, macs in batch))
    assert len({work for work, *_ in batches[1]}) > 2


def test_it_spends_what_it_may_but_for_less_than_a_match():
    told = evolved(cnn(), epochs=40).search
    assert told.allowed - told.spent < 2 * (1 + 1)


@pytest.mark.parametrize("config", [QUICK, replace(QUICK, places=8, parents=3), replace(QUICK, rounds=3, parents=1)])
@pytest.mark.parametrize("model", [cnn, ffnn])
def test_a_plan_tells_what_a_generation_takes(config: Ectonas, model):
    data = {"train_data": images(TRAIN, 1), "val_data": images(48, 2), "batch_size": BATCH}
    plan = fxsurgery.plan(model(), config=config, spend=Spend(epochs=1000), trained=True, **data)
    [told] = [note for note in plan.notes if "takes about" in note]
    price = float(told.split("takes about ")[1].split(" ")[0])
    short = evolved(model(), config, price - 1, trained=True)
    assert f"the spend ended within the first generation, which takes about {price:.0f} epochs" in "".join(short.notes)
    long = evolved(model(), config, price + 1, trained=True)
    assert not [note for note in long.notes if "first generation" in note]
    assert max(c.generation for c in long.search.trials) == 2


def test_where_the_first_generation_is_not_over_a_trained_network_wins():
    result = evolved(cnn(), replace(QUICK, greediness=0.5, places=8, weights_epochs=0.2), 12)
    assert max(c.generation for c in result.search.trials) == 1
    assert result.search.winner != 0


def test_a_spend_that_pays_for_nothing_is_an_error():
    with pytest.raises(
        BudgetError, match=r"nothing can be trained: a match .* takes [\d.]+ epochs, and 0.5 may be spent"
    ):
        evolved(cnn(), epochs=0.5, trained=True)


def test_the_warm_up_must_be_within_the_spend():
    with pytest.raises(BudgetError, match="warm-up of 1 epochs"):
        evolved(cnn(), epochs=0.5)
    with pytest.raises(BudgetError, match="a fine-tuning of 3 epochs is more than may be spent"):
        evolved(cnn(), replace(QUICK, finetune_epochs=3), epochs=2, trained=True)
    data = {"train_data": images(TRAIN, 1), "val_data": images(48, 2), "trained": False}
    with pytest.raises(BudgetError, match="a warm-up of 1 epochs"):
        fxsurgery.plan(cnn(), config=QUICK, spend=Spend(epochs=0.5), **data)


def test_the_result_is_a_plain_network_that_answers_alike_and_the_model_stays(monkeypatch: pytest.MonkeyPatch):
    model = cnn()
    before = copy.deepcopy(model.state_dict())
    result = evolved(model, test_data=images(32, 3))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in nonempty(before.items()))
    x, y = images(48, 2)
    with torch.no_grad():
        right = (result.model(x).argmax(1) == y).double().mean()
    assert result.metrics["val"].after == pytest.approx(float(right))
    assert set(result.metrics) == {"val", "test"}
    again = replay(result.log, capture(cnn(), *result.example_inputs))
    assert {n: t.shape for n, t in again.graph_module.state_dict().items()} == {
        n: t.shape for n, t in nonempty(result.model.state_dict().items())
    }


def test_the_same_seed_gives_the_same_result_and_another_another():
    assert same(evolved(cnn(), seed=3), evolved(cnn(), seed=3))
    assert not same(evolved(cnn(), seed=3, epochs=10), evolved(cnn(), seed=4, epochs=10))


@pytest.mark.parametrize("greediness", [1.0, 0.5])
def test_processes_give_the_same_result(greediness: float):
    config = replace(QUICK, greediness=greediness)
    assert same(evolved(cnn(), config), evolved(cnn(), config, executor="processes", workers=3))


def test_greedily_the_best_score_of_all_wins():
    told = evolved(cnn(), epochs=40).search
    best = max(c.score for c in told.trials if c.score is not None)
    assert told.trials[told.winner].score == best


def test_without_greed_every_generation_is_smaller():
    moves = ("identity", "remove-units", "add-units")
    told = evolved(cnn(), replace(QUICK, greediness=0.0, parents=1, operations=moves), 60)
    line = told.search.line(told.search.winner)
    assert len(line) > 2
    assert [c.costs["params"] for c in line] == sorted({c.costs["params"] for c in line}, reverse=True)
    assert told.cost[1].params == line[-1].costs["params"]


def test_random_mode_never_asks_who_is_better(monkeypatch: pytest.MonkeyPatch):
    def asked(*_: object, **__: object):
        raise AssertionError("the scores were compared")

    monkeypatch.setattr(EvolutionLoop, "_worth", asked)
    config = replace(QUICK, selection="random")
    result = evolved(cnn(), config)
    assert any((c.status, c.reason) == ("eliminated", "lost in competition 1") for c in result.search.trials)
    assert same(result, evolved(cnn(), config))
    with pytest.raises(AssertionError, match="the scores were compared"):
        evolved(cnn())


def test_lineage_is_whole():
    result = evolved(cnn(), epochs=60)
    told = result.search
    assert [c.number for c in nonempty(told.trials)] == list(range(len(told.trials)))
    assert told.trials[0].operation == "start"
    fates = {c.number: c.status for c in told.trials}
    for candidate in nonempty(told.trials[1:]):
        parent = told.trials[candidate.parent]
        assert parent.generation == candidate.generation - 1
        assert fates[parent.number] in {"parent", "winner"}
        assert candidate.epochs >= parent.epochs
    ages = [(told.trials[c.parent].epochs, epochs, c.epochs) for c in told.trials[1:] for epochs, _ in c.scores]
    assert all(parent < epochs <= own + 1e-9 for parent, epochs, own in nonempty(ages))
    line = told.line(told.winner)
    assert [c.move for c in line if c.move] == nonempty(result.log)
    metrics = nonempty(m for c in line for _, m in c.scores)
    assert [r["metric"] for r in result.history if r["metric"] is not None] == metrics
    assert [c.status for c in told.trials].count("winner") == 1


def test_the_front_is_of_networks_that_answer_as_told():
    result = evolved(cnn(), epochs=40)
    params = [member.cost.params for member in result.pareto]
    metrics = [member.metric for member in result.pareto]
    assert params == sorted(set(params))
    assert metrics == sorted(set(metrics))
    x, y = images(48, 2)
    for member in nonempty(result.pareto):
        with torch.no_grad():
            assert float((member.model(x).argmax(1) == y).double().mean()) == pytest.approx(member.metric)
        assert member.trial.costs["params"] == member.cost.params
        final = result.search.trials[member.trial.number]
        if result.search.is_winner(member.trial):
            assert (member.trial.status, member.trial.reason) == ("winner", "winner")
        elif final.status != "winner":
            assert (member.trial.status, member.trial.reason) == (final.status, final.reason)
        else:
            assert member.trial.status != "winner"
            assert "other weights" in member.trial.reason


def test_the_front_can_be_against_latency():
    result = evolved(cnn(), replace(QUICK, front="latency_ms", operations=("identity", "remove-cell")), 12)
    times = [member.latency_ms for member in result.pareto]
    assert times == sorted(times)
    assert all(time > 0 for time in nonempty(times))


def test_both_kinds_of_topology_cross():
    """By force: one operation is all that there is."""
    crossed = evolved(cnn(), replace(QUICK, operations=("remove-cell",), parents=1, greediness=0.99), 100)
    lines = [crossed.search.line(c.number) for c in crossed.search.trials]
    assert max(sum(c.operation == "remove-cell" for c in line) for line in lines) >= 2
    ffnns = [m for m in crossed.pareto if not list(m.program.calls(nn.Conv2d))]
    assert ffnns or any(c.costs["params"] > 2 * crossed.search.trials[0].costs["params"] for c in crossed.search.trials)
    grown = evolved(ffnn(), replace(QUICK, operations=("add-cell",), parents=1), 40)
    assert any(c.operation == "add-cell" and c.score is not None for c in grown.search.trials)


def test_a_budget_goes_before_the_fitness():
    start = cost(capture(ffnn(), images(2, 1)[0])).params
    result = evolved(ffnn(), epochs=120, budget=Budget(params=0.8))
    assert result.cost[1].params <= 0.8 * start
    kept = [c for c in result.search.trials if c.costs["params"] <= 0.8 * start and c.score is not None]
    assert result.search.trials[result.search.winner].score == max(c.score for c in kept)


def test_random_mode_keeps_a_budget_too():
    start = cost(capture(ffnn(), images(2, 1)[0])).params
    config = replace(QUICK, selection="random", operations=("identity", "remove-units"))
    for seed in range(3):
        result = evolved(ffnn(), config, 30, budget=Budget(params=0.95), seed=seed)
        assert result.cost[1].params <= 0.95 * start


def test_a_budget_that_nobody_keeps_is_an_error_that_says_how_near_it_came():
    with pytest.raises(
        BudgetError, match=r"no network of \d+ generations? meets the budget; the nearest .* has [\d,]+ par"
    ):
        evolved(cnn(), epochs=15, budget=Budget(params=10))


def test_duplicates_are_not_trained_twice(monkeypatch: pytest.MonkeyPatch):
    real = populations.moves

    def twice(*args):
        found = real(*args)
        return [*found, *found]

    monkeypatch.setattr(populations, "moves", twice)
    told = evolved(cnn()).search
    copies = [c for c in told.trials if c.status == "duplicate"]
    assert told.duplicates == len(copies) > 0
    for one in nonempty(copies):
        first = told.trials[int(one.reason.removeprefix("duplicate of "))]
        assert (one.score, one.scores) == (None, ())
        assert (first.costs["params"], first.parent, first.move) == (one.costs["params"], one.parent, one.move)


def test_refused_moves_are_counted_with_reasons():
    told = evolved(cnn(), replace(QUICK, most_growth=0.01)).search
    assert told.rejected["add-dense: more than 1% more parameters than its parent"] > 0
    assert all(c.costs["params"] <= 1.01 * told.trials[c.parent].costs["params"] for c in nonempty(told.trials[1:]))
    start = told.trials[0].costs["params"]
    capped = evolved(cnn(), replace(QUICK, most_params=start)).search
    assert all(c.costs["params"] <= start for c in nonempty(capped.trials))
    assert any(f"more than {start:,} parameters" in reason for reason in capped.rejected)
    large = evolved(cnn(), replace(QUICK, most_params=1, most_growth=0.1)).search
    assert start < max(c.costs["params"] for c in large.trials) <= 1.1 * start


def test_a_pass_that_crashes_costs_its_move_and_is_told(monkeypatch: pytest.MonkeyPatch):
    def crash(self, edit):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(Widen, "rewrite", crash)
    result = evolved(cnn())
    assert any(note.startswith("please report this: widen") and "by design" in note for note in result.notes)
    assert result.search.rejected["add-units: the pass crashed, which is a bug of fxsurgery"] > 0


def test_networks_that_diverge_are_out_and_counted(monkeypatch: pytest.MonkeyPatch):
    class Failing(JobRunner):
        def run(self, jobs, *args, **options):
            ends = super().run(jobs, *args, **options)
            wild = [": add-units" in job.name for job in jobs]
            return [replace(e, failure="the loss is nan") if w else e for e, w in zip(ends, wild, strict=True)]

    monkeypatch.setattr(fxsurgery.preparation, "JobRunner", Failing)
    told = evolved(cnn()).search
    gone = [c for c in told.trials if c.status == "failed" and c.reason.startswith("diverged: the loss is nan")]
    assert {c.operation for c in gone} == {"add-units"}
    assert all(c.score is None for c in nonempty(gone))
    assert told.rejected["add-units: training diverged"] == len(gone) > 0


def test_a_warm_up_that_diverges_is_an_error():
    with pytest.raises(TrainingError, match="the warm-up of the first network failed"):
        evolved(cnn(), replace(QUICK, learning_rate=1e30, weights_epochs=3))


def test_children_share_tensors_with_their_parent():
    program = capture(cnn(), images(2, 1)[0])
    population = populations.Population(
        tuple(n for n in QUICK.operations), populations.Amounts(places=8), 0, 10**7, 10.0
    )
    start = population.start(program)
    children = population.children([start], 1)
    owned = {t.untyped_storage().data_ptr() for t in program.graph_module.state_dict().values()}
    fresh = Counter[str]()
    for child in children:
        own = {t.untyped_storage().data_ptr(): t.nbytes for t in child.program.graph_module.state_dict().values()}
        fresh[child.operation] += sum(size for pointer, size in own.items() if pointer not in owned)
    assert fresh["identity"] == 0
    whole = sum(t.nbytes for t in program.graph_module.state_dict().values())
    assert sum(fresh.values()) < 0.9 * len(children) * whole
    assert set(fresh) == set(nonempty(QUICK.operations))


def test_a_trained_start_is_not_warmed_up():
    result = evolved(cnn(), epochs=20, trained=True)
    start = result.search.trials[0]
    assert (start.epochs, start.scores) == (0, ())
    assert start.score == result.metrics["val"].before


def test_a_loss_that_is_better_when_lower():
    x, y = images(TRAIN, 1)
    vx, vy = images(48, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 1))
    data = {"train_data": (x, y.float()[:, None]), "val_data": (vx, vy.float()[:, None])}
    result = evolved(model, replace(QUICK, learning_rate=0.01), loss=nn.MSELoss(), **data)
    told = result.search
    assert told.trials[told.winner].score == min(c.score for c in told.trials if c.score is not None)
    assert result.metrics["val"].after < result.metrics["val"].before
    assert not told.higher_is_better


def test_a_residual_network_evolves():
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.body(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), Block(6), Block(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(6, 4),
        )  # fmt: skip
    told = evolved(model, epochs=60).search
    tried = {c.operation for c in told.trials if c.score is not None}
    assert {"add-channels", "remove-channels", "add-cell", "remove-cell"} <= tried


def test_nothing_to_do_is_an_error_with_reasons():
    with pytest.raises(StructureError, match="none of the operations remove-cell can be applied to this model"):
        evolved(ffnn(), replace(QUICK, operations=("identity", "remove-cell")))
    with pytest.raises(StructureError, match="the identity alone, which makes no other network"):
        evolved(ffnn(), replace(QUICK, operations=("identity",)))


def test_time_that_is_up_ends_the_search_with_what_is_trained():
    result = evolved(cnn(), spend=Spend(seconds=1.5))
    told = result.search
    assert told.allowed is None
    assert told.trials[told.winner].score is not None
    assert math.isfinite(result.metrics["val"].after)


def test_fine_tuning_keeps_the_better():
    result = evolved(cnn(), replace(QUICK, finetune_epochs=4), 40)
    x, y = images(48, 2)
    with torch.no_grad():
        assert float((result.model(x).argmax(1) == y).double().mean()) == pytest.approx(result.metrics["val"].after)
    told = result.search.trials[result.search.winner]
    assert result.metrics["val"].after >= told.scores[-1][1]
    assert "fine-tune" in {record["stage"] for record in result.history}
    assert result.search.finetuned == 4


def test_fine_tuning_has_a_rate_of_its_own():
    config = replace(QUICK, finetune_epochs=4, finetune_learning_rate=0.2)
    result = evolved(cnn(), config, 30)
    rates = {True: [], False: []}
    for record in result.history:
        rates[record["stage"] == "fine-tune"].append(record["lr"])
    assert set(rates[False]) == {0.05}
    assert max(rates[True]) == pytest.approx(0.2, rel=0.05)
    assert min(rates[True]) < 0.02
    assert max(r["lr"] for r in evolved(cnn(), replace(QUICK, finetune_epochs=4), 30).history) == 0.05


def test_fine_tuning_that_diverges_is_left_out(monkeypatch: pytest.MonkeyPatch):
    class Failing(JobRunner):
        def run(self, jobs, *args, **options):
            ends = super().run(jobs, *args, **options)
            return [replace(e, failure="the loss is nan") for e in ends] if jobs[0].name == "fine-tune" else ends

    plain = evolved(cnn(), epochs=26)
    monkeypatch.setattr(fxsurgery.preparation, "JobRunner", Failing)
    result = evolved(cnn(), replace(QUICK, finetune_epochs=4), 30)
    assert any("fine-tuning failed, and is left out: the loss is nan" in note for note in result.notes)
    assert all(torch.equal(tensor, weights(result)[name]) for name, tensor in nonempty(weights(plain).items()))


@pytest.mark.parametrize("accumulate", [1, 4, 64])
def test_accumulated_batches_are_counted(accumulate: int):
    class Seen(torch.utils.data.Dataset):
        taken = 0

        def __init__(self) -> None:
            self.x, self.y = images(TRAIN, 1)

        def __len__(self) -> int:
            return TRAIN

        def __getitem__(self, index: int):
            Seen.taken += 1
            return self.x[index], self.y[index]

    told = evolved(cnn(), epochs=15, accumulate=accumulate, train_data=Seen(), example_inputs=images(4, 1)[0]).search
    assert told.spent <= 15
    assert Seen.taken / TRAIN <= 15 + 1  # what the capture looked at


def test_those_who_keep_the_budget_may_die_out():
    start = cost(capture(ffnn(), images(2, 1)[0])).params
    config = replace(QUICK, operations=("add-units",), greediness=0.5, parents=1)
    assert evolved(ffnn(), config, budget=Budget(params=start)).cost[1].params == start


def test_a_metric_that_is_never_a_number_is_an_error():
    with pytest.raises(TrainingError, match="the validation metric is not a number"):
        evolved(cnn(), epochs=6, metric=lambda output, target: float("nan"))


def test_a_long_line_is_followed_to_its_start():
    program = capture(ffnn(), images(2, 1)[0])
    one = None
    for number in range(3000):
        one = populations.Individual(number, one, number, "identity", "", program, cost(program))
    assert len(one.line()) == 3000


def test_without_data_it_agrees_with_the_original():
    result = fxsurgery.optimize(
        cnn(), config=replace(QUICK, greediness=0.5), spend=Spend(epochs=20), verbose=False, device="cpu"
    )
    assert result.notes[0].startswith("data-free")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"greediness": 1.5}, "greediness=1.5: it must be from 0 to 1"),
        ({"rounds": 0}, "rounds=0: it must be a whole number, at least 1"),
        ({"rounds": 2.5}, "rounds=2.5: it must be a whole number"),
        ({"match_epochs": 0}, "match_epochs=0: it must be greater than 0"),
        ({"match_epochs": math.inf}, "match_epochs=inf: it must be"),
        ({"selection": "best"}, "selection='best': it must be 'fitness' or 'random'"),
        ({"front": "size"}, "front='size': it must be 'params', 'macs', 'peak_activation_bytes' or 'latency_ms'"),
        ({"operations": ("add-cell", "fly")}, "there is no 'fly'; there are: identity"),
        ({"greediness": "0.5"}, "greediness='0.5': it must be from 0 to 1"),
        ({"operations": "add-cell"}, "it must be several names"),
        ({"operations": ()}, "there is no 'none at all'"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"finetune_learning_rate": 0}, "finetune_learning_rate=0: it must be greater than 0"),
        ({"finetune_learning_rate": 0.1, "optimizer": adamw(1e-3)}, "finetune_learning_rate is for SGD"),
    ],
)
def test_settings_without_meaning(settings: dict, said: str):
    with pytest.raises(SurgeryError, match=said):
        Ectonas(**settings)


def test_what_optimize_is_told_by_name():
    with pytest.raises(SurgeryError, match=r"takes no 'greedines'.*did you mean greediness=\?"):
        fxsurgery.optimize(cnn(), method="ectonas", greedines=0.5)
    with pytest.raises(SurgeryError, match="use method='ectonas', which has it"):
        fxsurgery.optimize(cnn(), greediness=0.5)
    with pytest.raises(SurgeryError, match="workers= is for executor='processes'"):
        fxsurgery.optimize(cnn(), method="ectonas", workers=2)
    with pytest.raises(SurgeryError, match="greediness= and config= at once"):
        fxsurgery.optimize(cnn(), config=QUICK, greediness=0.5)
    with pytest.raises(SurgeryError, match="spend= is for method='ectonas'"):
        fxsurgery.optimize(cnn(), method="prune", spend=Spend(epochs=3))
    with pytest.raises(SurgeryError, match="executor= is for method='ectonas'"):
        fxsurgery.optimize(cnn(), executor="processes")
    with pytest.raises(BudgetError, match="Spend"):
        fxsurgery.optimize(cnn(), method="ectonas", spend=300)
    with pytest.raises(BudgetError, match="a spend needs a limit"):
        Spend()
    with pytest.raises(BudgetError, match=r"epochs=-1"):
        Spend(epochs=-1)
    with pytest.raises(BudgetError, match="finite"):
        Spend(epochs=math.inf, seconds=1)


def test_candidates_that_crash_cost_their_operation_and_are_told(monkeypatch: pytest.MonkeyPatch):
    def crash(program, *_):
        raise PassCrashedError("widen: its candidates crashed")

    found = replace(OPERATIONS["add-units"], find=crash)
    monkeypatch.setitem(OPERATIONS, "add-units", found)
    result = evolved(cnn())
    assert result.search.rejected["add-units: the pass crashed, which is a bug of fxsurgery"] > 0
    assert any("please report this: widen: its candidates crashed" in note for note in result.notes)


def test_a_resumed_run_reads_its_trials_and_tries_no_move_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The journal ends in the middle of the first competition: only those that train on are rebuilt."""
    config = replace(QUICK, operations=("identity", "add-units", "remove-units", "remove-dense"), match_epochs=0.5)
    whole = evolved(ffnn(), config, epochs=14, run_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed", ignore=shutil.ignore_patterns("result", "report.html"))
    journal = tmp_path / "killed" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    [born, *later] = [i for i, line in enumerate(lines) if '"trials of generation ' in line]
    journal.write_text("".join(lines[: born + 3]))
    assert len(lines) > born + 3
    tried, made = list[int](), populations.moves

    def counted(program, operation, amounts, seed, constraints):
        tried.append(seed)
        return made(program, operation, amounts, seed, constraints)

    monkeypatch.setattr(populations, "moves", counted)
    again = evolved(ffnn(), config, epochs=14, run_dir=tmp_path / "killed", resume=True)
    assert same(again, whole)
    assert len(set(tried)) == len(later)
    assert again.search.rejected == whole.search.rejected


def test_the_front_can_be_against_peak_memory():
    result = evolved(cnn(), replace(QUICK, front="peak_activation_bytes"), epochs=20)
    bytes_ = [member.trial.cost("peak_activation_bytes") for member in result.pareto]
    assert bytes_ == [peak_activation_bytes(member.program) for member in result.pareto]
    assert bytes_ == sorted(set(bytes_))
    trained = [t for t in result.search.trials if t.status != "duplicate"]
    assert all(t.cost("peak_activation_bytes") > 0 for t in nonempty(trained))
    assert len(trained) > 3
