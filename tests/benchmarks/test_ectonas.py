"""The bookkeeping, data and tables of `benchmarks.ectonas`; of its searches only stand-ins are run."""

from argparse import Namespace
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import runs
from benchmarks.data import Split, Splits
from benchmarks.ectonas import crossing, ecto6, memory, resnet, resnet_trial, throughput, together, trial
from benchmarks.ectonas.kinds import convolutions, kind
from benchmarks.ectonas.nets import AS_LONG, Nets, of_mode
from benchmarks.ectonas.rows import accuracy, crossed, crossings, each, ends, share
from benchmarks.ectonas.tabular import ROWS, TEST_ROWS, TRAIN_ROWS, table, tabular
from benchmarks.ectonas.trial import MODES, NETS, Trial
from benchmarks.tables import header, markdown
from fxsurgery import BudgetError, capture
from fxsurgery.analysis.cost import cost
from fxsurgery.searchers.common import trials
from fxsurgery.training import Recipe, constant, evaluate, fit, sgd
from nonempty import nonempty

TRIAL = Trial(data="fashion", net="small-ffnn", mode="greedy", seed=0, epochs=300, samples=60)
ASKED = Nets(
    data="fashion", nets=["small-cnn", "large-ffnn"], modes=["greedy", "random", "baseline"], seeds=[0, 1],
    spend=300, samples=60_000, batch_size=128, learning_rate=0.1, match_epochs=5, workers=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty `runs/`, and the number of threads as it was."""
    for module in (runs, trial, together, resnet_trial):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def few(monkeypatch):
    """Sixty images that can be learned, in place of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    images = torch.randn(100, 1, 28, 28, generator=generator) + labels[:, None, None, None] / 3
    parts = [Split(images[first:last], labels[first:last]) for first, last in ((0, 54), (54, 60), (60, 100))]
    monkeypatch.setattr(trial, "splits", lambda data, samples: Splits(*parts))


@pytest.fixture
def search(monkeypatch):
    """A stand-in for the search: gives the start net back; calls are remembered, the first ones may fail."""
    calls = []

    def optimize(model, **asked):
        asked["run_dir"].joinpath("stages").mkdir(parents=True, exist_ok=True)
        calls.append(asked)
        if len(calls) <= optimize.failures:
            raise KeyboardInterrupt
        return result_of(model)

    optimize.failures, optimize.calls = 0, calls
    monkeypatch.setattr(trial, "optimize", optimize)
    return optimize


def result_of(model):
    """What a search gives that ended with its start net."""
    program = capture(model.eval(), torch.zeros(2, 1, 28, 28))
    costs = {"params": 5, "macs": 7}
    start = trials.Trial(number=0, parent=None, generation=0, operation="start", costs=costs, epochs=10.0)
    child = replace(start, number=1, parent=0, generation=2, operation="identity", epochs=31.5)
    record = trials.SearchRecord(
        trials=(start, child), winner=1, spent=299.5, allowed=300.0, rejected={"a": 2, "b": 3}, duplicates=4
    )
    metrics = {"val": SimpleNamespace(before=0.1, after=0.5), "test": SimpleNamespace(before=0.1, after=0.4)}
    both = (cost(program), cost(program))
    return SimpleNamespace(
        original=program, program=program, search=record, metrics=metrics, cost=both,
        model=program.graph_module, log=(),
    )  # fmt: skip


def figures(test=0.9, *, before=1.0, after=1.0, trained=100.0, params=1000.0):
    return {
        "test": test, "validation": test, "params": params, "MACs": 5.0, "params before": 2000.0, "MACs before": 10.0,
        "winner trained": trained, "spent": 300.0, "convolutions before": before, "convolutions": after,
    }  # fmt: skip


class TestData:
    def test_a_tenth_of_the_images_is_for_validation(self, monkeypatch):
        asked = {}
        monkeypatch.setattr(trial, "fashion_mnist", lambda **sizes: asked.update(sizes))
        trial.splits.__wrapped__("fashion", 60_000)
        assert asked == {"train": 54_000, "validation": 6_000}

    def test_the_table_has_the_form_of_adult(self):
        columns, labels = table(0)
        assert columns.shape == (ROWS, 100)
        assert columns.min() == 0
        assert columns.max() == 1
        assert labels.mean() == pytest.approx(0.24, abs=0.005)
        coded = ((columns == 0) | (columns == 1)).all(0)
        assert coded.sum() == 95
        # One column each, but of sex one alone is left, and rare countries have none.
        assert columns[:, coded].sum(1).min() >= 6
        assert columns[:, coded].sum(1).max() <= 8

    def test_columns_are_scrambled(self):
        columns, _ = table(0)
        numbers = (~((columns == 0) | (columns == 1)).all(0)).nonzero()[0]
        assert numbers.max() - numbers.min() > 20

    def test_the_same_seed_gives_the_same_table(self):
        assert (table(3)[0] == table(3)[0]).all()
        assert (table(3)[0] != table(4)[0]).any()

    def test_no_row_is_in_two_splits(self):
        columns, labels = table(0)
        splits = tabular(train=1_000, test=300)
        assert splits.train.images.shape == (900, 1, 10, 10)
        flat = torch.cat([splits.train.images, splits.validation.images, splits.test.images]).flatten(1)
        rows = torch.from_numpy(columns).float()
        assert torch.equal(flat, torch.cat([rows[:1_000], rows[TRAIN_ROWS : TRAIN_ROWS + 300]]))
        assert splits.validation.labels.tolist() == labels[900:1_000].tolist()

    def test_more_rows_than_there_are_is_an_error(self):
        with pytest.raises(ValueError, match=f"but there are {TRAIN_ROWS} and {TEST_ROWS}"):
            tabular(train=TRAIN_ROWS + 1)


class TestKinds:
    def test_a_network_with_a_convolution_is_a_cnn(self):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 2))
        program = capture(net.eval(), torch.zeros(2, 1, 4, 4))
        assert convolutions(program) == 2
        assert kind(convolutions(program)) == "CNN"

    def test_a_network_without_one_is_an_ffnn(self):
        program = capture(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), torch.zeros(2, 1, 4, 4))
        assert kind(convolutions(program)) == "FFNN"

    def test_a_convolution_that_is_a_function_counts(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(2, 1, 3, 3))

            def forward(self, x):
                return functional.conv2d(x, self.weight)

        assert convolutions(capture(Net().eval(), torch.zeros(2, 1, 4, 4))) == 1


class TestRows:
    def test_accuracy_is_a_mean_and_a_sample_deviation_in_percent(self):
        assert accuracy([figures(0.86), figures(0.88)]) == "87.0 ± 1.4"
        assert accuracy([figures(0.86)]) == "86.0 ± ?"

    def test_crossings_are_counted_by_where_they_start(self):
        found = [figures(before=2, after=0), figures(before=2, after=3), figures(before=0, after=1)]
        assert crossed(found, "CNN") == (1, 2)
        assert crossed(found, "FFNN") == (1, 1)
        assert crossings(found) == {"CNN → FFNN": "1 of 2 (50.0 %)", "FFNN → CNN": "1 of 1 (100.0 %)"}

    def test_nothing_is_said_where_nothing_starts(self):
        assert share(0, 0) is None

    def test_the_papers_share_is_what_it_prints(self):
        assert share(5, 75) == "5 of 75 (6.7 %)"

    def test_one_seed_is_a_plain_number(self):
        assert each([figures(0.5)], ["test", "seconds"]) == {"test": 0.5}
        assert each([figures(0.5), figures(0.6)], ["test"]) == {"test": [0.5, 0.6]}

    def test_convolutions_of_each_run_are_told(self):
        assert ends([figures(before=2, after=3), figures(before=2, after=0)]) == "2 → 3, 2 → 0"


class TestTrial:
    def test_different_trials_are_kept_apart(self):
        others = [{"seed": 1}, {"mode": "random"}, {"net": "small-cnn"}, {"epochs": 1000}, {"samples": 50}]
        others += [{"data": "tabular"}, {"batch_size": 64}, {"learning_rate": 0.05}]
        others += [{"match_epochs": 1}]
        assert len({TRIAL.key, *(replace(TRIAL, **other).key for other in others)}) == 10

    def test_figures_of_a_search_are_those_of_its_winner(self, few, search):
        found = TRIAL.figures()
        assert found["test"] == 0.4
        assert found["winner trained"] == 31.5
        assert found["spent"] == 299.5
        assert (found["generations"], found["candidates"], found["duplicates"], found["rejected"]) == (2, 2, 4, 5)
        assert found["convolutions before"] == found["convolutions"] == 0
        assert found["params"] == sum(p.numel() for p in TRIAL.model().parameters())

    def test_a_search_is_asked_for_as_its_mode_says(self, few, search, folder):
        for mode in trial.SEARCHES:
            replace(TRIAL, mode=mode).figures()
        asked = [call["config"] for call in search.calls]
        assert [c.greediness for c in asked[:3]] == [1.0, 0.5, 0.0]
        assert [c.selection for c in asked] == ["fitness", "fitness", "fitness", "random"]
        assert all(
            call["spend"].epochs == 300 and not call["trained"] and call["resume"] for call in nonempty(search.calls)
        )
        assert all((c.learning_rate, c.momentum, c.weight_decay) == (0.1, 0.0, 0.0) for c in nonempty(asked))

    def test_what_was_run_is_not_run_again(self, few, search):
        assert TRIAL.figures() == TRIAL.figures()
        assert len(search.calls) == 1

    def test_a_search_that_was_cut_off_goes_on_in_its_directory(self, few, search, folder):
        search.failures = 1
        with pytest.raises(KeyboardInterrupt):
            TRIAL.figures()
        assert (folder / TRIAL.key / "stages").is_dir()
        TRIAL.figures()
        assert [call["run_dir"] for call in search.calls] == [folder / TRIAL.key] * 2
        assert not (folder / TRIAL.key / "stages").exists()

    def test_a_baseline_is_the_plain_loop_on_the_start_net(self, few):
        baseline = replace(TRIAL, mode="baseline", epochs=3, batch_size=10, net="small-cnn")
        found, model, task = baseline.figures(), baseline.model(), baseline.task()
        fit(model, task, Recipe(steps=18, optimizer=sgd(0.1, momentum=0), schedule=constant()), seed=0, device="cpu")
        assert found["test"] == evaluate(model, task, task.test_data).metric
        assert found["winner trained"] == found["spent"] == 3
        assert found["convolutions"] == 3

    def test_a_baseline_that_was_cut_off_comes_to_the_same(self, few, folder, monkeypatch):
        baseline = replace(TRIAL, mode="baseline", epochs=3, batch_size=10)
        whole = baseline.figures()
        (folder / f"{baseline.key}.json").unlink()
        keep, kept = trial.Snapshots.keep, []

        def keep_some(self, snapshot):
            keep(self, snapshot)
            kept.append(snapshot)
            if len(kept) == 7:
                raise KeyboardInterrupt

        monkeypatch.setattr("fxsurgery.runs.run_directory.SNAPSHOT_SECONDS", 0.0)
        monkeypatch.setattr(trial.Snapshots, "keep", keep_some)
        with pytest.raises(KeyboardInterrupt):
            baseline.figures()
        assert baseline.figures() == whole
        assert len(kept) < 2 * 18
        assert not list(folder.glob("*.partial"))


@dataclass(frozen=True)
class Stub:
    """A trial that takes no time."""

    name: str
    epochs: float
    net: str = "small-ffnn"

    @property
    def key(self):
        return self.name

    def figures(self):
        return runs.once(self.key, lambda: figures(float(len(self.name)), params=self.epochs))

    def model(self):
        return TRIAL.model()

    def task(self):
        return TRIAL.task()


class TestTogether:
    def test_figures_come_in_the_order_of_the_trials(self, capsys):
        stubs = [Stub("a", 1), Stub("bbb", 2), Stub("cc", 3)]
        assert [f["test"] for f in together.run_all(stubs, 1)] == [1, 3, 2]
        assert "2 of 3: bbb: test accuracy 3.0000, 2 parameters" in capsys.readouterr().out

    def test_only_what_is_missing_is_estimated(self, few):
        stubs = [Stub("a", 60_000), Stub("bb", 120_000)]
        assert together.estimate(stubs, 2).startswith("2 of 2 trials are to be run: about ")
        stubs[1].figures()
        assert together.missing(stubs) == [stubs[0]]
        assert together.estimate(stubs, 2).startswith("1 of 2 trials are to be run: about ")
        stubs[0].figures()
        assert together.estimate(stubs, 2) == (
            "0 of 2 trials are to be run: about 0 core-minutes, 0 minutes on 2 workers"
        )


class TestNets:
    def test_every_net_is_tried_in_every_mode_with_every_seed(self):
        trials = ASKED.trials()
        assert len({t.key for t in trials}) == len(trials) == 2 * 3 * 2
        assert {t.epochs for t in trials if t.mode == "baseline"} == {60}
        assert {t.epochs for t in trials if t.mode != "baseline"} == {300}

    def test_the_long_baseline_has_the_papers_epochs(self):
        assert {t.epochs for t in replace(ASKED, spend=1000).trials() if t.mode == "baseline"} == {200}

    def test_a_baseline_trains_as_long_as_the_winners_of_its_net(self):
        found = {(net, "greedy"): [figures(trained=a), figures(trained=b)] for net, a, b in (
            ("small-cnn", 100, 111), ("large-ffnn", 40, 50)
        )}  # fmt: skip
        again = ASKED.as_long(found)
        assert {(t.net, t.epochs) for t in again} == {("small-cnn", 106), ("large-ffnn", 45)}
        assert {t.mode for t in again} == {"baseline"}

    def test_a_whole_part_runs_with_a_stand_in(self, few, search, capsys):
        asked = replace(ASKED, spend=15, samples=60, seeds=[0], batch_size=10)
        found = asked.run()
        assert set(found) == {(net, mode) for net in nonempty(asked.nets) for mode in (*asked.modes, AS_LONG)}
        assert {f["spent"] for f in of_mode(found, "baseline")} == {3}
        assert {f["spent"] for f in of_mode(found, AS_LONG)} == {32}
        assert "6 of 6 trials are to be run" in capsys.readouterr().out


FOUND = {
    ("small-cnn", "greedy"): [figures(0.86, before=3, after=0), figures(0.88, before=3, after=3)],
    ("large-ffnn", "greedy"): [figures(0.84, before=0, after=0), figures(0.86, before=0, after=1)],
    ("small-cnn", "baseline"): [figures(0.8), figures(0.8)],
    ("small-cnn", AS_LONG): [figures(0.81), figures(0.81)],
}


class TestTables:
    def test_ours_stand_beside_the_papers(self):
        pages = ecto6.tables(ASKED, FOUND)
        name = "ectonas-ecto6-300-of-60000-greedy-random-baseline-small-cnn-large-ffnn"
        assert list(pages) == [name, f"{name}-nets"]
        page = markdown(pages[name], header())
        assert "| greedy | 300 | 4 | 86.0 ± 1.6 | 1.0 | 100 | 1 of 2 (50.0 %) | 1 of 2 (50.0 %) |" in page
        assert "| paper: greedy | 1000 | 60 | 87.2 ± 1.5 | 43.0 | - | - | - |" in page
        assert "| paper: baseline | 200 | 60 | 86.8 ± 1.4 | 28.0 | - | - | - |" in page
        assert "paper: alpha-0.5" not in page
        assert "not measured here" in page
        assert "Searches are not as long as the paper's" in page
        assert page.index(f"| {AS_LONG} |") < page.index("| paper: greedy |")

    def test_searches_as_long_as_the_papers_are_called_so(self):
        pages = ecto6.tables(replace(ASKED, spend=1000, modes=MODES, nets=NETS), FOUND)
        assert "Searches are as long as the paper's" in pages["ectonas-ecto6-1000-of-60000"].notes

    def test_every_net_and_mode_has_a_row_of_its_own(self):
        page = markdown(list(ecto6.tables(ASKED, FOUND).values())[1], header())
        assert "| small-cnn | greedy | 0.8700 ± " in page
        assert "3 → 0, 3 → 3 |" in page

    def test_crossings_stand_beside_table_3(self):
        pages = crossing.tables(replace(ASKED, data="tabular", modes=["greedy", "alpha-0.5", "baseline"]), FOUND)
        page = markdown(pages["ectonas-crossing-300-of-60000-greedy-alpha-0.5-baseline-small-cnn-large-ffnn"], header())
        assert (
            "| paper, Adult: greedy | 1000 | 150 | 84.8 ± 0.7 | 7.6 | - | 5 of 75 (6.7 %) | 0 of 75 (0.0 %) |" in page
        )
        assert "| paper, Adult: alpha-0.5 |" in page
        assert "67 of 75 (89.3 %)" in page
        assert "no real ones" in page


RESNET = Namespace(
    seeds=[0, 1], first=4.0, spend=60.0, budget=0.5, samples=10_000, match_epochs=0.25, places=3, rounds=2,
    finetune=6.0, learning_rate=0.01, workers=1,
)  # fmt: skip


class TestResnet:
    def test_all_rows_have_trials_of_their_own(self):
        rows = resnet.first_rows(RESNET)
        assert len({t.key for row in rows.values() for t in row}) == 2 * len(rows) == 2 * 9
        assert {t.budget for t in rows["greedy", "MACs 0.5"]} == {0.5}
        assert {t.epochs for t in rows["as it is, the whole spend", ""]} == {64}

    def test_controls_train_as_long_as_the_winner_of_their_seed_and_budget(self):
        found = {("greedy", ""): [figures(trained=11), figures(trained=12)]}
        found |= {("greedy", "MACs 0.5"): [figures(trained=21), figures(trained=22)]}
        rows = resnet.later_rows(RESNET, found)
        assert [t.spend for t in rows["prune, as long as the greedy winner", "MACs 0.5"]] == [21, 22]
        assert [t.epochs for t in rows["as it is, as long as the greedy winner", ""]] == [15, 16]

    def test_costs_are_shares_of_the_start(self):
        page = markdown(resnet.table(RESNET, {("greedy", ""): [figures(params=500.0)] * 2}), header())
        assert "| greedy | - | - | 300 ± 0 | 100.0 ± 0.0 | 0.500 ± 0.000 | 0.250 ± 0.000 |" in page

    def test_a_search_that_misses_its_budget_is_told_apart(self, few, monkeypatch):
        def optimize(model, **asked):
            raise BudgetError("no network keeps the budget")

        monkeypatch.setattr(resnet_trial, "optimize", optimize)
        monkeypatch.setattr(resnet_trial, "_splits", lambda samples: trial.splits("", samples))
        monkeypatch.setattr(resnet.Trial, "start", resnet.Trial.model)
        missed = resnet.first_rows(RESNET)["greedy", "MACs 0.5"][0].figures()
        found = {("greedy", "MACs 0.5"): [missed, figures(trained=9)], ("greedy", ""): [figures(), figures()]}
        page = markdown(resnet.table(RESNET, found), header())
        assert "| greedy | MACs 0.5 | 1 of 2 | 300 | 9.0 | 0.500 | 0.500 |" in page
        later = resnet.later_rows(RESNET, found)["prune, as long as the greedy winner", "MACs 0.5"]
        assert [(t.seed, t.spend) for t in later] == [(1, 9)]


class TestThroughput:
    def test_results_are_compared_seed_by_seed(self):
        one = [{"seconds": 10.0, "candidates": 5, "digest": 1}, {"seconds": 20.0, "candidates": 5, "digest": 2}]
        two = [{**one[0], "seconds": 5.0}, {**one[1], "seconds": 8.0}]
        found = {("n", "in-process"): one, ("n", "processes"): two, ("n", "ray"): [two[0], {**two[1], "digest": 3}]}
        row = throughput.row("n", "processes", 2, found)
        assert row["times as fast"] == [2.0, 2.5]
        assert row["the same result"] == "yes"
        assert throughput.row("n", "ray", 2, found)["the same result"] == "NO"
        assert "the same result" not in throughput.row("n", "in-process", 2, found)

    def test_every_executor_searches_and_finds_the_same(self, few, capsys):
        asked = Namespace(
            nets=["small-ffnn"], executors=["in-process", "processes"], workers=2, seeds=[0], spend=6.0, warm_up=1.0,
            match_epochs=0.5, samples=60,
        )  # fmt: skip
        trials = [throughput._timed(asked, "small-ffnn", executor, 0) for executor in asked.executors]
        one, two = (trial.figures() for trial in trials)
        assert one["candidates"] > 1
        assert one["digest"] == two["digest"]

    def test_the_digest_sees_one_weight(self, few):
        model = TRIAL.model()
        before = throughput.digest(result_of(model))
        assert before == throughput.digest(result_of(TRIAL.model()))
        with torch.no_grad():
            next(model.parameters()).view(-1)[0].add_(1e-3)
        assert throughput.digest(result_of(model)) != before


class TestMemory:
    def test_a_tensor_that_is_shared_counts_once(self):
        program = capture(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval(), torch.zeros(2, 4))
        whole = 4 * (12 + 3 + 4 * 3) + 8
        assert memory.distinct_bytes([program]) == whole
        assert memory.distinct_bytes([program, program.with_weights(program.draft())]) == whole
        assert memory.distinct_bytes([program, program.with_weights(program.trainable_copy())]) == 2 * whole

    def test_children_take_less_than_their_copies(self):
        found = memory.measured("small-cnn", 2)
        assert found["children"] > 5
        assert found["shared"] < 0.6 * found["copied"]


def test_options_are_understood(monkeypatch):
    asked = {}
    for module in (ecto6, crossing, resnet, throughput, memory):
        monkeypatch.setattr(module, "main", lambda options: asked.update(vars(options)))
    from benchmarks.ectonas.__main__ import main

    monkeypatch.setattr("sys.argv", ["x", "ecto6", "--spend", "1000", "--nets", "small-cnn", "--workers", "2"])
    main()
    assert Nets.of("fashion", Namespace(**asked)).spend == 1000
    monkeypatch.setattr("sys.argv", ["x", "crossing"])
    main()
    assert (asked["samples"], asked["seeds"]) == (TRAIN_ROWS, [0, 1, 2])
    for part in ("r20", "throughput", "memory"):
        monkeypatch.setattr("sys.argv", ["x", part])
        main()
        assert asked["part"] == part
