"""The start nets in every mode: shared by the parts `ecto6` and `crossing`."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean

from benchmarks.ectonas.together import estimate, missing, run_all
from benchmarks.ectonas.trial import BASELINE, MODES, NETS, Trial
from benchmarks.runs import Figures

AS_LONG = f"{BASELINE}, as long as the greedy winners"
PAPER_SPEND, PAPER_BASELINE, PAPER_MATCH = 1000, 200, 5
"""Epochs."""
Found = Mapping[tuple[str, str], Sequence[Figures]]
"""Trials by net and mode, one per seed."""


@dataclass(frozen=True, kw_only=True)
class Nets:
    """Which nets are tried in which modes, and on what."""

    data: str
    nets: Sequence[str]
    modes: Sequence[str]
    seeds: Sequence[int]
    spend: float
    """Epochs a search."""
    samples: int
    batch_size: int
    learning_rate: float
    match_epochs: float
    workers: int

    @classmethod
    def of(cls, data: str, options: argparse.Namespace) -> "Nets":
        """Values from the command line."""
        return cls(data=data, **{f.name: getattr(options, f.name) for f in fields(cls) if f.name != "data"})

    @property
    def suffix(self) -> str:
        """Suffix of the names of the tables."""
        matches = "" if self.match_epochs == PAPER_MATCH else f"-matches-{self.match_epochs:g}"
        some = [self.modes if set(self.modes) < set(MODES) else (), self.nets if set(self.nets) < set(NETS) else ()]
        return "-".join([f"{self.spend:g}{matches}-of-{self.samples}", *(name for names in some for name in names)])

    def trials(self) -> list[Trial]:
        """Return every trial that is known beforehand, the longest first, so that no worker ends up alone."""
        order = sorted(self.modes, key=lambda mode: mode == BASELINE)
        return [self._trial(net, mode, seed) for mode in order for net in self.nets for seed in self.seeds]

    def _trial(self, net: str, mode: str, seed: int) -> Trial:
        epochs = round(self.spend * PAPER_BASELINE / PAPER_SPEND) if mode == BASELINE else self.spend
        return Trial(
            data=self.data, net=net, mode=mode, seed=seed, epochs=max(epochs, 1), samples=self.samples,
            batch_size=self.batch_size, learning_rate=self.learning_rate, match_epochs=self.match_epochs,
        )  # fmt: skip

    def run(self) -> Found:
        """Every trial; then the baseline once more, as long as each net's greedy winners were trained on average."""
        planned = self.trials()
        print(estimate(planned, self.workers), flush=True)
        found = _grouped(planned, run_all(planned, self.workers))
        if "greedy" not in self.modes or BASELINE not in self.modes:
            return found
        again = self.as_long(found)
        if missing(again):
            print(f"then {AS_LONG}: {estimate(again, self.workers)}", flush=True)
        longer = _grouped(again, run_all(again, self.workers))
        return {**found, **{(net, AS_LONG): figures for (net, _), figures in longer.items()}}

    def as_long(self, found: Found) -> list[Trial]:
        """The baseline of each net for as many epochs as its greedy winners were trained, on average over the seeds."""
        trials = [self._trial(net, BASELINE, seed) for net in self.nets for seed in self.seeds]
        trained = {net: fmean(f["winner trained"] for f in found[net, "greedy"]) for net in self.nets}
        return [replace(trial, epochs=max(1, round(trained[trial.net]))) for trial in trials]


def of_mode(found: Found, mode: str) -> list[Figures]:
    """The trials of one mode, over all nets and seeds."""
    return [figures for (_, of), some in found.items() if of == mode for figures in some]


def modes_of(found: Found) -> list[str]:
    """Modes in the order of the table."""
    return [mode for mode in (*MODES, AS_LONG) if any(of == mode for _, of in found)]


def add_options(parser: argparse.ArgumentParser, *, samples: int, seeds: Sequence[int]) -> None:
    """The options of these parts."""
    parser.add_argument("--spend", type=float, default=300, help="epochs a search; the paper's are 1000")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS, metavar="NET", help=", ".join(NETS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES, metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument(
        "--train", dest="samples", type=int, default=samples, help="samples, a tenth of them validation"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument(
        "--match-epochs", type=float, default=PAPER_MATCH, help="epochs per match; the paper's by default"
    )
    parser.add_argument("--workers", type=int, default=1, help="trials at once, each in a process of one thread")


def in_order(found: Found) -> list[tuple[tuple[str, str], Sequence[Figures]]]:
    """Sort by net, then by mode, in the order in which they are listed."""
    modes = modes_of(found)
    return sorted(found.items(), key=lambda item: (NETS.index(item[0][0]), modes.index(item[0][1])))


def of_searches(asked: Nets) -> str:
    """Return the note on the length of the searches."""
    ours = f"{asked.spend:g} epochs a search, warm-up included, in matches of {asked.match_epochs:g}"
    theirs = f"the paper's {PAPER_SPEND:,} in matches of {PAPER_MATCH}"
    if (asked.spend, asked.match_epochs) == (PAPER_SPEND, PAPER_MATCH):
        return f"Searches are as long as the paper's: {ours}."
    return (
        f"Searches are not as long as the paper's: {ours}, against {theirs}. A first generation of a start net with "
        "convolutions takes about 280 epochs in matches of 5, and the later ones, with two parents, twice that; a "
        "search that ends in its first generation has made one change at most. The table by net has the generations."
    )


def _grouped(trials: Sequence[Trial], figures: Sequence[Figures]) -> dict[tuple[str, str], list[Figures]]:
    found = dict[tuple[str, str], list[Figures]]()
    for trial, some in zip(trials, figures, strict=True):
        found.setdefault((trial.net, trial.mode), []).append(some)
    return found
