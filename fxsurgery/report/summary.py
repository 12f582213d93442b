"""What an optimization came to, in a few lines of text."""

import math

from fxsurgery.printable import lines
from fxsurgery.report.formatting import epochs, figure
from fxsurgery.report.report_input import ReportInput
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord

MOST_SHOWN = 8
"""Members of a front."""
MOST_TEXT = 60
"""Characters of what was done."""


def summary(told: ReportInput) -> str:
    """A table of before, after and ratio, that of the Pareto front where there is one, and the notes."""
    rows = [
        *_costs(told),
        *((f"{told.metric_name} ({split})", p.before, p.after, "{:.4f}") for split, p in told.metrics.items()),
        *((name, pair.before, pair.after, "{:.4f}") for name, pair in told.figures.items()),
    ]
    width = max(len(name) for name, *_ in rows) + 1
    table = [f"{'':<{width}}{'before':>16}{'after':>16}{'ratio':>9}"]
    for name, was, is_, form in rows:
        ratio = is_ / was if was else math.nan
        table.append(f"{name:<{width}}{form.format(was):>16}{form.format(is_):>16}{ratio:>9.3f}")
    return lines([*table, *_evolved(told), *(f"note: {note}" for note in told.notes)])


def _costs(told: ReportInput) -> list[tuple[str, float, float, str]]:
    """What original and result take, as far as it is known without running anything of a result that was loaded."""
    before, after = told.costs
    if before is None or after is None:
        was, is_ = (sum(p.numel() for p in x.graph_module.parameters()) for x in (told.original, told.program))
        return [("parameters", was, is_, "{:,.0f}")]
    return [
        ("parameters", before.params, after.params, "{:,.0f}"),
        ("MACs", before.macs, after.macs, "{:,.0f}"),
    ]


def _evolved(told: ReportInput) -> list[str]:
    """How much of what might be spent was spent, and the Pareto front; nothing where there was no evolution."""
    record = told.search
    if record is None:
        return []
    networks = f"{record.trained:,} network{'s' if record.trained > 1 else ''}"
    of = "" if record.allowed is None else f" of {epochs(record.allowed)}"
    spent = f"evolved: {networks} trained, {epochs(record.spent)}{of} epochs spent"
    return [spent, *_front(told.pareto, record, told.metric_name)]


def _front(members: tuple[ParetoMember, ...], record: SearchRecord, metric_name: str) -> list[str]:
    if not members:
        return []
    winner = next((i for i, m in enumerate(members) if record.is_winner(m.trial)), None)
    kept = _shown(len(members), winner)
    star = "" if winner is None else " (* the winner)"
    head = f"{'Pareto front':<13}{metric_name:>16}{'parameters':>14}{'MACs':>16}  what was done{star}"
    table = [head, *(_line(i, members[i], record, chosen=i == winner) for i in kept)]
    left = len(members) - len(kept)
    return [*table, *([f"   and {left} more: result.pareto"] if left else [])]


def _line(number: int, member: ParetoMember, record: SearchRecord, *, chosen: bool) -> str:
    trial = member.trial
    costs = f"{trial.costs['params']:>14,}{trial.costs['macs']:>16,}"
    mark = " *" if chosen else ""
    return f"{f'{number}{mark}':>6}{figure(member.metric):>23}{costs}  {_done(record, trial.number)}"


def _done(record: SearchRecord, number: int) -> str:
    """What was done, its end left out where there is a lot of it."""
    text = record.done(number)
    if len(text) <= MOST_TEXT:
        return text
    return f"{text[:MOST_TEXT].rpartition(', ')[0]}, ... ({len(record.changes(number))} changes)"


def _shown(many: int, winner: int | None) -> list[int]:
    """Of so many members, those to show: both ends, the winner, and some spread over the rest."""
    if many <= MOST_SHOWN:
        return list(range(many))
    spread = {round(i * (many - 1) / (MOST_SHOWN - 1)) for i in range(MOST_SHOWN)}
    return sorted(spread | ({winner} if winner is not None else set()))
