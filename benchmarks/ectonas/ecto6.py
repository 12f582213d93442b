"""The six start nets on Fashion-MNIST in every mode, beside Tables 1 and 2 of the paper."""

import argparse
from typing import Any

from benchmarks.ectonas.nets import (
    AS_LONG,
    PAPER_BASELINE,
    PAPER_SPEND,
    Found,
    Nets,
    in_order,
    modes_of,
    of_mode,
    of_searches,
)
from benchmarks.ectonas.paper import FASHION as PUBLISHED
from benchmarks.ectonas.rows import PER_NET, accuracy, crossings, mean, per_net
from benchmarks.ectonas.trial import FASHION
from benchmarks.tables import Table, write

COLUMNS = {
    "mode": "",
    "epochs": ".0f",
    "runs": ".0f",
    "test accuracy, %": "",
    "params, K": ".1f",
    "winner trained, epochs": ".0f",
    "CNN → FFNN": "",
    "FFNN → CNN": "",
}


def main(options: argparse.Namespace) -> None:
    """Run what is missing, then write both tables."""
    asked = Nets.of(FASHION, options)
    for name, page in tables(asked, asked.run()).items():
        print(write(page, name))


def tables(asked: Nets, found: Found) -> dict[str, Table]:
    """The table by mode, and the one by net and mode, by the names of their files."""
    title = f"ECToNAS from six start nets on Fashion-MNIST, {asked.spend:g} epochs a search"
    name = f"ectonas-ecto6-{asked.suffix}"
    rows = [ours(mode, found) for mode in modes_of(found)]
    rows += [theirs(mode) for mode in PUBLISHED if mode in asked.modes]
    by_net = [per_net(net, mode, figures) for (net, mode), figures in in_order(found)]
    return {
        name: Table(title, COLUMNS, rows, asked.seeds, notes(asked)),
        f"{name}-nets": Table(f"{title}, by net", PER_NET, by_net, asked.seeds, notes_by_net()),
    }


def ours(mode: str, found: Found) -> dict[str, Any]:
    """The row of a mode, over all nets and seeds."""
    figures = of_mode(found, mode)
    return {
        "mode": mode,
        "epochs": mean(figures, "spent"),
        "runs": len(figures),
        "test accuracy, %": accuracy(figures),
        "params, K": mean(figures, "params") / 1000,
        "winner trained, epochs": mean(figures, "winner trained"),
        **crossings(figures),
    }


def theirs(mode: str) -> dict[str, Any]:
    """The paper's row of a mode."""
    row = PUBLISHED[mode]
    return {
        "mode": f"paper: {mode}",
        "epochs": PAPER_BASELINE if mode == "baseline" else PAPER_SPEND,
        "runs": 60,
        "test accuracy, %": row.accuracy,
        "params, K": row.params,
    }


def notes(asked: Nets) -> str:
    """Return the notes below the first table."""
    learned = asked.samples - asked.samples // 10
    return (
        f"Nets: {', '.join(asked.nets)}. 'epochs' are those of a whole search over all its candidates, or of the plain "
        f"training, on average. Test accuracy is the mean ± the sample deviation over all runs, nets and seeds alike, "
        f"as the paper has it. Trained on {learned:,} images, selected on {asked.samples // 10:,}, tested once on "
        f"10,000. SGD at {asked.learning_rate:g} without momentum, batches of {asked.batch_size} (the paper says "
        f"none). A baseline is its start net as it is after its last epoch, as in the paper; '{AS_LONG}' is each start "
        "net trained for as many epochs as its own greedy winners were on average. A search's result may be the best "
        "of many candidates on validation data, a baseline is one network. Crossings count the runs whose winner has "
        "a convolution where the start had none, or none where it had some. "
        f"{of_searches(asked)}\n\n"
        "Rows that begin with 'paper:' are from Tables 1 and 2 of the paper, not measured here: 1,000 epochs a "
        "search, 200 epochs a baseline, 10 runs a start net; no crossings are given."
    )


def notes_by_net() -> str:
    """Return the notes below a table by net."""
    return (
        "'winner trained' are the epochs of the winner, its ancestors' among them; 'spent' those of the whole search; "
        "'rejected' moves gave no candidate, 'duplicates' were not trained. 'convolutions' are those of the start and "
        "of the winner."
    )
