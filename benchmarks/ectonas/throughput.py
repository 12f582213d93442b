"""The same short search in this process, in two worker processes, and as tasks of Ray: how long, and whether the same.

A round is one seed, and goes through the executors in turn. Warm-up and matches are shortened, so that most of a short
search is matches, which run side by side; the warm-up is one network, which cannot be shared out. Before the rounds
each executor has a tiny search that is not timed, so that what starts once in a process counts for none.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import fmean
from typing import Any

from typing_extensions import override

from benchmarks.ectonas.together import estimate, missing, run_all
from benchmarks.ectonas.trial import FASHION, NETS, Trial
from benchmarks.runs import Figures
from benchmarks.tables import Table, write
from fxsurgery import Ectonas, Result, Spend, optimize
from fxsurgery.searchers.common.trials import to_plain
from fxsurgery.training.snapshot import tensors_of

ALONE = "in-process"
EXECUTORS = (ALONE, "processes", "ray")
WARM_UP_SAMPLES, WARM_UP_SPEND = 1_000, 4.0
COLUMNS = {
    "net": "",
    "executor": "",
    "workers": ".0f",
    "candidates": ".0f",
    "seconds": ".1f",
    "times as fast": ".2f",
    "the same result": "",
}


@dataclass(frozen=True, kw_only=True)
class Timed(Trial):
    """A search by one executor."""

    executor: str
    workers: int
    warm_up_epochs: float

    @property
    @override
    def name(self) -> str:
        """Name in the progress messages."""
        return f"{super().name}, {self.executor}"

    @property
    @override
    def key(self) -> str:
        """Key of its figures under `runs/`."""
        executor = f"{self.executor}-{self.workers}-{self.warm_up_epochs:g}"
        return f"{super().key}-throughput-{executor}"

    @override
    def searched(self) -> Figures:
        """Run the search, on the clock."""
        config = Ectonas(
            weights_epochs=self.warm_up_epochs, match_epochs=self.match_epochs, learning_rate=self.learning_rate
        )
        model, task = self.model(), self.task()
        began = time.monotonic()
        result = optimize(
            model, method="ectonas", train_data=task, trained=False, spend=Spend(epochs=self.epochs), config=config,
            seed=self.seed, device="cpu", executor=self.executor,
            workers=None if self.executor == ALONE else self.workers, verbose=False,
        )  # fmt: skip
        return {
            "seconds": time.monotonic() - began,
            "candidates": len(result.search.trials),
            "test": result.metrics["test"].after,
            "params": result.cost[1].params,
            "digest": digest(result),
        }


def digest(result: Result) -> int:
    """Return a 48-bit hash of a search's result: weights, passes, scores, lineage."""
    # A worker that died costs time alone.
    record = to_plain(replace(result.search, lost_workers=0))
    found = hashlib.sha256(json.dumps([record, result.log], sort_keys=True).encode())
    for name, tensor in sorted(tensors_of(result.model).items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return int.from_bytes(found.digest()[:6], "big")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this part."""
    parser.add_argument("--nets", nargs="+", default=["medium-cnn", "large-ffnn"], choices=NETS, metavar="NET")
    known = [name for name in EXECUTORS if name != "ray" or find_spec("ray")]
    parser.add_argument("--executors", nargs="+", default=known, choices=EXECUTORS, metavar="EXECUTOR")
    parser.add_argument("--workers", type=int, default=2, help="workers of each executor except the in-process one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a round each")
    parser.add_argument("--spend", type=float, default=60, help="epochs a search")
    parser.add_argument("--warm-up", type=float, default=2, help="epochs; the paper's are 10")
    parser.add_argument("--match-epochs", type=float, default=1, help="the paper's are 5")
    parser.add_argument("--train", dest="samples", type=int, default=20_000, help="images, a tenth of them validation")


def main(options: argparse.Namespace) -> None:
    """Run what is missing, round by round, then write the table."""
    trials = [
        _timed(options, net, executor, seed)
        for net in options.nets for seed in options.seeds for executor in options.executors
    ]  # fmt: skip
    print(estimate(trials, 1), flush=True)
    if missing(trials):
        for executor in options.executors:
            # Not kept, so that each call has its own.
            _timed(options, options.nets[0], executor, 0, tiny=True).searched()
    found = dict[tuple[str, str], list[Figures]]()
    for trial, figures in zip(trials, run_all(trials, 1), strict=True):
        found.setdefault((trial.net, trial.executor), []).append(figures)
    print(write(table(options, found), "ectonas-throughput"))


def table(options: argparse.Namespace, found: Mapping[tuple[str, str], Sequence[Figures]]) -> Table:
    """A row for each net and executor."""
    rows = [row(net, executor, options.workers, found) for net, executor in found]
    notes = (
        f"{options.samples:,} images of Fashion-MNIST, {options.spend:g} epochs a search, {options.warm_up:g} of them "
        f"the warm-up of one network, which is not shared out; matches of {options.match_epochs:g} epochs. A round a "
        "seed, the executors in turn; starting and ending processes, or Ray, is in the time of each search. 'times as "
        "fast' is the time in one process over this one's, of the same seed. "
        "'the same result': the winner's weights and passes, and every candidate's scores and fate, are equal bit for "
        "bit to those found in one process, for every seed."
    )
    return Table("ECToNAS, throughput of the executors", COLUMNS, rows, options.seeds, notes)


def row(net: str, executor: str, workers: int, found: Mapping[tuple[str, str], Sequence[Figures]]) -> dict[str, Any]:
    """Return the row of one net and executor, relative to one process."""
    figures, alone = found[net, executor], found.get((net, ALONE))
    cells: dict[str, Any] = {
        "net": net,
        "executor": executor,
        "workers": 1 if executor == ALONE else workers,
        "candidates": fmean(f["candidates"] for f in figures),
        "seconds": [f["seconds"] for f in figures],
    }
    if alone is None or executor == ALONE:
        return cells
    pairs = list(zip(alone, figures, strict=True))
    same = all(one["digest"] == other["digest"] for one, other in pairs)
    ratios = [one["seconds"] / other["seconds"] for one, other in pairs]
    return {**cells, "times as fast": ratios, "the same result": "yes" if same else "NO"}


def _timed(options: argparse.Namespace, net: str, executor: str, seed: int, *, tiny: bool = False) -> Timed:
    return Timed(
        data=FASHION, net=net, mode="greedy", seed=seed, epochs=WARM_UP_SPEND if tiny else options.spend,
        samples=WARM_UP_SAMPLES if tiny else options.samples, executor=executor,
        workers=1 if executor == ALONE else options.workers, warm_up_epochs=1 if tiny else options.warm_up,
        match_epochs=options.match_epochs,
    )  # fmt: skip
