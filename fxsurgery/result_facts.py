"""Conversion of a result into what is saved: its programs by folder, and all other fields as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fxsurgery.budget import Cost
from fxsurgery.program import Program
from fxsurgery.searchers.common.pareto import ParetoMember, member_to_plain
from fxsurgery.searchers.common.trials import to_plain


@dataclass(frozen=True, eq=False)
class BeforeAfter:
    """A value of the original and of the result."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """`after` divided by `before`; NaN if `before` is 0."""
        return self.after / self.before if self.before else float("nan")


PROGRAMS = ("program", "original")
"""Fields of a result that hold programs."""
_CONVERTED = ("search", "pareto", "latency", "metrics", "figures")
"""Fields that are saved in another form, or only where there is something in them."""


def programs_of(result: Any) -> dict[str, Program]:  # noqa: ANN401 -- a `Result`, whose module imports this one
    """Return the programs of a result by the folders that they are saved in."""
    members = {member_folder(i): member.program for i, member in enumerate(result.pareto)}
    return {name: getattr(result, name) for name in PROGRAMS} | members


def facts_of(result: Any) -> Mapping[str, Any]:  # noqa: ANN401 -- as above
    """Return the other fields of a result as plain values, for JSON."""
    apart = {*PROGRAMS, *_CONVERTED}
    facts = {f.name: getattr(result, f.name) for f in fields(result) if not f.name.startswith("_")}
    facts = {name: value for name, value in facts.items() if name not in apart}
    if result.latency:
        facts["latency"] = dict(result.latency)
    for name in ("metrics", "figures"):
        facts[name] = {what: (pair.before, pair.after) for what, pair in getattr(result, name).items()}
    if result.search is not None:
        facts["search"] = to_plain(result.search)
    if result.pareto:
        facts["pareto"] = [member_to_plain(member) for member in result.pareto]
    return facts


def member_folder(number: int) -> str:
    """Return the folder of a member of the Pareto front, relative to that of the result."""
    return f"pareto/{number}"


def cost_of_member(member: ParetoMember) -> Cost:
    """Return the cost of a member as the search recorded it."""
    return Cost(params=int(member.trial.costs["params"]), macs=int(member.trial.costs["macs"]))
