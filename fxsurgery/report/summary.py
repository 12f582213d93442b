"""The summary of an optimization in a few lines of text."""

import math

from fxsurgery.printable import lines
from fxsurgery.report.formatting import epochs, figure
from fxsurgery.report.report_input import ReportInput
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord

MOST_SHOWN = 8
"""Number of networks of a Pareto front that are listed."""
MOST_TEXT = 60
"""Number of characters of the operations of a network."""


def summary(source: ReportInput) -> str:
    """Return a table of before, after and ratio, a table of the Pareto front if there is one, and the notes."""
    rows = [
        *_costs(source),
        *((f"{source.metric_name} ({split})", p.before, p.after, "{:.4f}") for split, p in source.metrics.items()),
        *((name, pair.before, pair.after, "{:.4f}") for name, pair in source.figures.items()),
    ]
    width = max(len(name) for name, *_ in rows) + 1
    table = [f"{'':<{width}}{'before':>16}{'after':>16}{'ratio':>9}"]
    for name, was, is_, form in rows:
        ratio = is_ / was if was else math.nan
        table.append(f"{name:<{width}}{form.format(was):>16}{form.format(is_):>16}{ratio:>9.3f}")
    return lines([*table, *_evolved(source), *(f"note: {note}" for note in source.notes)])


def _costs(source: ReportInput) -> list[tuple[str, float, float, str]]:
    """Return the costs of original and result, as far as known without running a loaded model."""
    before, after = source.costs
    if before is None or after is None:
        was, is_ = (sum(p.numel() for p in x.graph_module.parameters()) for x in (source.original, source.program))
        return [("parameters", was, is_, "{:,.0f}")]
    return [
        ("parameters", before.params, after.params, "{:,.0f}"),
        ("MACs", before.macs, after.macs, "{:,.0f}"),
    ]


def _evolved(source: ReportInput) -> list[str]:
    """Return lines on the spent epochs and the Pareto front; none without an evolutionary search."""
    record = source.search
    if record is None:
        return []
    networks = f"{record.trained:,} network{'s' if record.trained > 1 else ''}"
    of = "" if record.allowed is None else f" of {epochs(record.allowed)}"
    spent = f"evolved: {networks} trained, {epochs(record.spent)}{of} epochs spent"
    return [spent, *_front(source.pareto, record, source.metric_name)]


def _front(members: tuple[ParetoMember, ...], record: SearchRecord, metric_name: str) -> list[str]:
    if not members:
        return []
    winner = next((i for i, m in enumerate(members) if record.is_winner(m.trial)), None)
    kept = _shown(len(members), winner)
    # A result for another network of the front has that one as its winner, which the search did not choose.
    chosen = "the winner" if record.trials[record.winner].status == "winner" else "this network"
    star = "" if winner is None else f" (* {chosen}{', before its fine-tuning' if record.finetuned else ''})"
    head = f"{'Pareto front':<13}{metric_name:>16}{'parameters':>14}{'MACs':>16}  what was done{star}"
    table = [head, *(_line(i, members[i], record, chosen=i == winner) for i in kept)]
    left = len(members) - len(kept)
    more = [f"   and {left} more: result.pareto"] if left else []
    return [*table, *more, f"   {metric_name} after the last epoch that each of these trained, on the validation data"]


def _line(number: int, member: ParetoMember, record: SearchRecord, *, chosen: bool) -> str:
    trial = member.trial
    costs = f"{trial.costs['params']:>14,}{trial.costs['macs']:>16,}"
    mark = " *" if chosen else ""
    return f"{f'{number}{mark}':>6}{figure(member.metric):>23}{costs}  {_done(record, trial.number)}"


def _done(record: SearchRecord, number: int) -> str:
    """Return the operations of a network, cut if they are many."""
    text = record.done(number)
    if len(text) <= MOST_TEXT:
        return text
    return f"{text[:MOST_TEXT].rpartition(', ')[0]}, ... ({len(record.changes(number))} changes)"


def _shown(many: int, winner: int | None) -> list[int]:
    """Return the indices to list out of `many`: both ends, the winner, and some spread over the rest."""
    if many <= MOST_SHOWN:
        return list(range(many))
    spread = {round(i * (many - 1) / (MOST_SHOWN - 1)) for i in range(MOST_SHOWN)}
    return sorted(spread | ({winner} if winner is not None else set()))
