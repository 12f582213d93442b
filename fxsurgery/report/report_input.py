"""What a report needs to be told: the part of a `fxsurgery.Result` that it reads."""

from collections.abc import Mapping
from typing import Any, Protocol

from fxsurgery.budget import Cost
from fxsurgery.program import Program
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord


class Pair(Protocol):
    """One figure of the original and of the result."""

    @property
    def before(self) -> float:
        """Of the original."""

    @property
    def after(self) -> float:
        """Of the result."""


class ReportInput(Protocol):
    """An optimization that has ended; `fxsurgery.Result` is one."""

    @property
    def original(self) -> Program:
        """What it began with."""

    @property
    def program(self) -> Program:
        """What came of it; its log leads there."""

    @property
    def costs(self) -> tuple[Cost | None, Cost | None]:
        """What original and result take; `None` where it cannot be told without running what was loaded."""

    @property
    def metric_name(self) -> str:
        """What `metrics` are."""

    @property
    def metrics(self) -> Mapping[str, Pair]:
        """By split: `val`, `test`."""

    @property
    def figures(self) -> Mapping[str, Pair]:
        """The other numbers of a metric that gives several, by name and split."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What stayed as it is, and why."""

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """As `fxsurgery.training.Progress` keeps it."""

    @property
    def gates(self) -> tuple[float, ...]:
        """Each gate at the end, 0 to 1; none where nothing was gated."""

    @property
    def seed(self) -> int:
        """Of everything random."""

    @property
    def asked(self) -> Mapping[str, Any]:
        """What was asked for, plain JSON: `method`, `budget`, `settings` and the like; each may be missing."""

    @property
    def search(self) -> SearchRecord | None:
        """The trials of a search that trained many networks."""

    @property
    def pareto(self) -> tuple[ParetoMember, ...]:
        """Its Pareto front, the cheapest first."""
