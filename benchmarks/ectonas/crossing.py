"""Tabular data as images: which searches cross from CNN to FFNN or back, beside Tables 3 and 5 of the paper.

The data are a stand-in, see `benchmarks.ectonas.tabular`.
"""

import argparse
from typing import Any

from benchmarks.ectonas.ecto6 import COLUMNS, notes_by_net, ours
from benchmarks.ectonas.kinds import CNN, FFNN
from benchmarks.ectonas.nets import PAPER_BASELINE, PAPER_SPEND, Found, Nets, in_order, modes_of, of_searches
from benchmarks.ectonas.paper import ADULT, CROSSING_RUNS, CROSSINGS
from benchmarks.ectonas.rows import HEADINGS, PER_NET, per_net, share
from benchmarks.ectonas.trial import TABULAR
from benchmarks.tables import Table, write


def main(options: argparse.Namespace) -> None:
    """Run what is missing, then write both tables."""
    asked = Nets.of(TABULAR, options)
    for name, page in tables(asked, asked.run()).items():
        print(write(page, name))


def tables(asked: Nets, found: Found) -> dict[str, Table]:
    """The table by mode, and the one by net and mode, by the names of their files."""
    title = f"ECToNAS across topologies: a made table as 10x10 images, {asked.spend:g} epochs a search"
    name = f"ectonas-crossing-{asked.suffix}"
    rows = [ours(mode, found) for mode in modes_of(found)]
    rows += [theirs(mode) for mode in ADULT if mode in asked.modes]
    by_net = [per_net(net, mode, figures) for (net, mode), figures in in_order(found)]
    return {
        name: Table(title, COLUMNS, rows, asked.seeds, notes(asked)),
        f"{name}-nets": Table(f"{title}, by net", PER_NET, by_net, asked.seeds, notes_by_net()),
    }


def theirs(mode: str) -> dict[str, Any]:
    """The paper's row of a mode."""
    row = {
        "mode": f"paper, Adult: {mode}",
        "epochs": PAPER_BASELINE if mode == "baseline" else PAPER_SPEND,
        "runs": 2 * CROSSING_RUNS,
        "test accuracy, %": ADULT[mode].accuracy,
        "params, K": ADULT[mode].params,
    }
    if mode in CROSSINGS:
        away, towards = CROSSINGS[mode]
        row |= {HEADINGS[CNN]: share(away, CROSSING_RUNS), HEADINGS[FFNN]: share(towards, CROSSING_RUNS)}
    return row


def notes(asked: Nets) -> str:
    """Return the notes below the table."""
    return (
        f"The data are no real ones, but a made table of the form and size of the paper's modified Adult set: "
        f"{asked.samples:,} rows to train on, a tenth of them for validation, 16,281 to test, 100 columns in no order, "
        "two classes of 76 % and 24 %. So accuracies are not to be compared with the paper's; crossings and sizes "
        f"rather. SGD at {asked.learning_rate:g} without momentum, batches of {asked.batch_size}. Test accuracy is "
        f"the mean ± the sample deviation over all runs. {of_searches(asked)}\n\n"
        "Rows that begin with 'paper' are from Tables 3 and 5 of the paper, not measured here: on Adult, 1,000 epochs "
        "a search, 25 runs a start net."
    )
