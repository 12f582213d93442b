"""One trial: a start net, a mode, a seed, and its figures; stored under `runs/`, resumable after a kill."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import nn

from benchmarks.data import Splits, fashion_mnist
from benchmarks.ectonas.kinds import convolutions
from benchmarks.ectonas.tabular import tabular
from benchmarks.runs import RUNS, Figures, once
from fxsurgery import Ectonas, Program, Result, Spend, Task, capture, optimize
from fxsurgery.analysis.cost import cost
from fxsurgery.runs.layout import STAGES
from fxsurgery.runs.run_directory import Snapshots
from fxsurgery.searchers.ectonas import start_nets
from fxsurgery.training import Recipe, constant, evaluate, fit, sgd, steps_for

SIZES = ("small", "medium", "large")
NETS = tuple(f"{size}-{kind}" for kind in ("cnn", "ffnn") for size in SIZES)
SEARCHES: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "greedy": {"greediness": 1.0},
    "alpha-0.5": {"greediness": 0.5},
    "alpha-0": {"greediness": 0.0},
    "random": {"selection": "random"},
})  # fmt: skip
BASELINE = "baseline"
MODES = (*SEARCHES, BASELINE)
FASHION, TABULAR = "fashion", "tabular"
_CLASSES = {FASHION: 10, TABULAR: 2}


@cache
def splits(data: str, samples: int) -> Splits:
    """The data, a tenth of the `samples` for validation; kept, since many trials of a process share them."""
    if data == TABULAR:
        return tabular(train=samples)
    return fashion_mnist(train=samples - samples // 10, validation=samples // 10)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A search from a start net; or, in the mode `baseline`, the start net trained plainly."""

    data: str
    """`fashion` or `tabular`."""
    net: str
    """One of `NETS`."""
    mode: str
    """One of `MODES`."""
    seed: int
    epochs: float
    """Epochs of the search over all candidates, or of the baseline."""
    samples: int
    """Number of samples, a tenth of them for validation."""
    batch_size: int = 128
    learning_rate: float = 0.1
    """Learning rate of SGD without momentum, constant: the paper's."""
    match_epochs: float = 5
    """Epochs per match of a search: the paper's."""

    @property
    def name(self) -> str:
        """Name in the progress messages."""
        return f"{self.net}, {self.mode}, seed {self.seed}, {self.epochs:g} epochs"

    @property
    def key(self) -> str:
        """Key of its figures under `runs/`."""
        of: list[object] = ["ectonas", self.data, self.net, self.mode, f"{self.epochs:g}", self.samples]
        of += [self.batch_size, f"{self.learning_rate:g}"]
        if self.mode != BASELINE:
            of.append(f"{self.match_epochs:g}")
        return "-".join(map(str, [*of, self.seed]))

    def model(self) -> nn.Module:
        """Return the untrained start net."""
        size, _, kind = self.net.partition("-")
        shape = tuple(splits(self.data, self.samples).train.images.shape[1:])
        return start_nets.start_net(
            size, convolutions=kind == "cnn", input_shape=shape, classes=_CLASSES[self.data], seed=self.seed
        )

    def task(self) -> Task:
        """Return the task."""
        data = splits(self.data, self.samples)
        train, validation, test = ((part.images, part.labels) for part in (data.train, data.validation, data.test))
        return Task.of(train, validation, test_data=test, batch_size=self.batch_size, seed=self.seed)

    def figures(self) -> Figures:
        """Run the trial, or recall its figures."""
        found = once(self.key, self._trained if self.mode == BASELINE else self.searched)
        # Only now: a search that is killed before its figures are stored resumes from these.
        shutil.rmtree(RUNS / self.key / STAGES, ignore_errors=True)
        return found

    def _trained(self) -> Figures:
        task, model, partial = self.task(), self.model(), RUNS / f"{self.key}.partial"
        before = capture(self.model().eval(), self.example())
        fit(model, task, self._recipe(task), seed=self.seed, keeper=Snapshots(partial), device="cpu")
        partial.unlink(missing_ok=True)
        program = capture(model.eval(), self.example())
        scores = {
            "validation": evaluate(model, task).metric,
            "test": evaluate(model, task, task.test_data).metric,
        }
        return {**scores, **sizes(before, program), "winner trained": self.epochs, "spent": self.epochs}

    def _recipe(self, task: Task) -> Recipe:
        steps = steps_for(task, self.epochs, min_steps=1, max_steps=None)
        optimizer = sgd(self.learning_rate, momentum=0.0)
        return Recipe(steps=steps, optimizer=optimizer, schedule=constant(), validations=1)

    def example(self) -> Any:  # noqa: ANN401
        """Two samples, to capture the network on."""
        return splits(self.data, self.samples).train.images[:2]

    def searched(self) -> Figures:
        """Run the search, or resume it."""
        rates = {"learning_rate": self.learning_rate, "match_epochs": self.match_epochs}
        result = optimize(
            self.model(), method="ectonas", train_data=self.task(), trained=False, spend=Spend(epochs=self.epochs),
            config=Ectonas(**rates, **SEARCHES[self.mode]), seed=self.seed, run_dir=RUNS / self.key, resume=True,
            device="cpu", executor="in-process", verbose=False,
        )  # fmt: skip
        return of_search(result)


def of_search(result: Result) -> Figures:
    """The figures of a search."""
    record = result.search
    winner = record.trials[record.winner]
    return {
        "validation": result.metrics["val"].after,
        "test": result.metrics["test"].after,
        **sizes(result.original, result.program),
        "winner trained": winner.epochs,
        "spent": record.spent,
        "generations": max(c.generation for c in record.trials),
        "candidates": len(record.trials),
        "duplicates": record.duplicates,
        "rejected": sum(record.rejected.values()),
    }


def sizes(before: Program, after: Program) -> Figures:
    """Return the costs of both networks, and their numbers of convolutions."""
    was, now = cost(before), cost(after)
    return {
        "params before": was.params,
        "params": now.params,
        "MACs before": was.macs,
        "MACs": now.macs,
        "convolutions before": convolutions(before),
        "convolutions": convolutions(after),
    }
