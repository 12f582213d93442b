"""From a ResNet-20, which the paper's operations cannot change: with and without a budget, against its controls.

R20w8 is trained on Fashion-MNIST for a few epochs, once a seed, and every row continues from it:

* searches: greedy, alpha 0.5 and random, free and with half the MACs, with matches and places cut down so that a small
  spend is several generations; the winner is fine-tuned at a falling rate inside the spend;
* `method="prune"` at the same MACs, which trains the one network that it makes for the whole spend; and for as many
  epochs as the greedy winner of the same budget and seed had;
* as it is: trained from the beginning for all of those epochs at a rate that falls once; and for those of the free
  greedy winner.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.ectonas.resnet_trial import AS_IT_IS, FREE, OUT_OF_REACH, PRESET, PRUNE, START, Trial
from benchmarks.ectonas.rows import each, ends
from benchmarks.ectonas.together import estimate, missing, one_thread, run_all
from benchmarks.runs import Figures
from benchmarks.tables import Table, write

COLUMNS = {
    "network": "",
    "budget": "",
    "kept": "",
    "epochs": ".0f",
    "trained": ".1f",
    "MACs": ".3f",
    "params": ".3f",
    "validation": ".4f",
    "test": ".4f",
    "candidates": ".0f",
    "convolutions": "",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this part."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--first", type=float, default=4, help="epochs that the start is trained")
    parser.add_argument("--spend", type=float, default=60, help="epochs a search, its fine-tune among them")
    parser.add_argument("--budget", type=float, default=0.5, help="fraction of the MACs")
    parser.add_argument("--train", dest="samples", type=int, default=10_000, help="training images")
    parser.add_argument("--match-epochs", type=float, default=0.25, help="the paper's are 5")
    parser.add_argument("--places", type=int, default=3, help="of each operation on each parent")
    parser.add_argument("--rounds", type=int, default=2, help="of a competition; the paper's are 3")
    parser.add_argument("--finetune", type=float, default=6, help="epochs of the winner, inside the spend")
    parser.add_argument("--learning-rate", type=float, default=PRESET.learning_rate / 10, help="of matches")
    parser.add_argument("--workers", type=int, default=1, help="trials at once, each in a process of one thread")


def main(options: argparse.Namespace) -> None:
    """Run what is missing, then write the table."""
    rows = first_rows(options)
    trials = [trial for row in rows.values() for trial in row]
    print(estimate(trials, options.workers), flush=True)
    one_thread()
    for trial in rows[START, ""]:
        # Before the others, which would all begin with it.
        trial.start()
    found = _run(rows, options.workers)
    again = later_rows(options, found)
    if missing([trial for row in again.values() for trial in row]):
        print(f"then: {estimate([t for row in again.values() for t in row], options.workers)}", flush=True)
    found |= _run(again, options.workers)
    print(write(table(options, found), f"ectonas-r20-{options.spend:g}"))


Rows = dict[tuple[str, str], list[Trial]]
"""One trial a seed, by network and budget as the table has them."""


def first_rows(options: argparse.Namespace) -> Rows:
    """The rows that can be named beforehand."""
    budget = options.budget
    rows: Rows = {(START, ""): [_trial(options, START, seed, spend=0.0) for seed in options.seeds]}
    for share in (FREE, budget):
        for mode in ("greedy", "alpha-0.5", "random"):
            rows[mode, _told(share)] = [_trial(options, mode, seed, budget=share) for seed in options.seeds]
    rows[f"{PRUNE}, the whole spend", _told(budget)] = [
        _trial(options, PRUNE, seed, budget=budget) for seed in options.seeds
    ]
    rows[f"{AS_IT_IS}, the whole spend", ""] = [_trial(options, AS_IT_IS, seed) for seed in options.seeds]
    return rows


def later_rows(options: argparse.Namespace, found: dict[tuple[str, str], list[Figures]]) -> Rows:
    """The controls that train as long as the greedy winner of their seed."""

    def as_long(mode: str, budget: float) -> list[Trial]:
        pairs = zip(options.seeds, found["greedy", _told(budget)], strict=True)
        trained = {seed: round(figures["winner trained"], 2) for seed, figures in pairs if not _missed(figures)}
        return [_trial(options, mode, seed, budget=budget, spend=epochs) for seed, epochs in trained.items()]

    return {
        (f"{PRUNE}, as long as the greedy winner", _told(options.budget)): as_long(PRUNE, options.budget),
        (f"{AS_IT_IS}, as long as the greedy winner", ""): as_long(AS_IT_IS, FREE),
    }


def table(options: argparse.Namespace, found: dict[tuple[str, str], list[Figures]]) -> Table:
    """A row for each network and budget."""
    rows = [_row(network, budget, figures) for (network, budget), figures in found.items()]
    notes = (
        f"R20w8 on {options.samples:,} images of Fashion-MNIST, 2,000 to select on, 10,000 to test once; trained for "
        f"{options.first:g} epochs first, its MACs and parameters being 1. 'epochs' is all that was trained for a row, "
        "over all its networks, and 'trained' what the network of the row had of that, both after those first ones. A "
        f"search spends {options.spend:g} epochs: matches of {options.match_epochs:g} at a rate of "
        f"{options.learning_rate:g}, competitions of {options.rounds} rounds, at most {options.places} places an "
        f"operation, {options.finetune:g} to fine-tune the winner, at the rate of all other rows: "
        f"{PRESET.learning_rate:g}, falling to 0. So it looks at far fewer networks, and for shorter, than the paper's "
        "settings would. 'as it is' is trained from the beginning, the first epochs included, at a rate that falls to "
        "0 once. 'kept': of how many runs the result keeps the budget; the other figures are of those. The last "
        "column: convolutions of the start and of the end."
    )
    return Table("ECToNAS from a ResNet-20, R20w8 on Fashion-MNIST", COLUMNS, rows, options.seeds, notes)


def _row(network: str, budget: str, found: Sequence[Figures]) -> dict[str, Any]:
    kept = [figures for figures in found if not _missed(figures)]
    shares = [
        {**f, "MACs": f["MACs"] / f["MACs before"], "params": f["params"] / f["params before"],
         "epochs": f.get("spent", f["winner trained"]), "trained": f["winner trained"]}
        for f in kept
    ]  # fmt: skip
    names = [name for name, spec in COLUMNS.items() if spec]
    told = {"budget": budget, "kept": f"{len(kept)} of {len(found)}"} if budget else {"budget": "-", "kept": "-"}
    return {"network": network, **told, **each(shares, names), "convolutions": ends(kept)}


def _missed(figures: Figures) -> bool:
    """Whether no network of a search kept its budget."""
    return OUT_OF_REACH in figures


def _run(rows: Rows, workers: int) -> dict[tuple[str, str], list[Figures]]:
    figures = iter(run_all([trial for row in rows.values() for trial in row], workers))
    return {name: [next(figures) for _ in row] for name, row in rows.items()}


def _trial(
    options: argparse.Namespace, mode: str, seed: int, *, budget: float = FREE, spend: float | None = None
) -> Trial:
    return Trial(
        mode=mode, seed=seed, budget=budget, spend=options.spend if spend is None else spend, first=options.first,
        samples=options.samples, match_epochs=options.match_epochs, places=options.places, rounds=options.rounds,
        finetune_epochs=options.finetune, learning_rate=options.learning_rate,
    )  # fmt: skip


def _told(budget: float) -> str:
    return f"MACs {budget:g}" if budget else ""
