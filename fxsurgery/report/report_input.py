"""The part of a `fxsurgery.Result` that a report reads."""

from collections.abc import Mapping
from typing import Any, Protocol

from fxsurgery.budget import Cost
from fxsurgery.program import Program
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord


class Pair(Protocol):
    """One number of the original and of the result."""

    @property
    def before(self) -> float:
        """Value of the original."""

    @property
    def after(self) -> float:
        """Value of the result."""


class ReportInput(Protocol):
    """A finished optimization; `fxsurgery.Result` is one."""

    @property
    def original(self) -> Program:
        """The original program."""

    @property
    def program(self) -> Program:
        """The resulting program, whose log has the passes."""

    @property
    def costs(self) -> tuple[Cost | None, Cost | None]:
        """Costs of original and result; `None` if unknown without running a loaded model."""

    @property
    def metric_name(self) -> str:
        """Name of the metric."""

    @property
    def metrics(self) -> Mapping[str, Pair]:
        """Values of the metric by split: `val`, `test`."""

    @property
    def figures(self) -> Mapping[str, Pair]:
        """Other values of a metric that returns several, by name and split."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, such as layers that stayed as they are."""

    @property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """Training records, as `fxsurgery.training.Progress` keeps them."""

    @property
    def gates(self) -> tuple[float, ...]:
        """Final values of all gates, 0 to 1; empty without gates."""

    @property
    def seed(self) -> int:
        """Random seed of the run."""

    @property
    def asked(self) -> Mapping[str, Any]:
        """Settings of the run as plain JSON: `method`, `budget`, `settings` and others; each may be missing."""

    @property
    def search(self) -> SearchRecord | None:
        """Record of a search that trained many networks."""

    @property
    def pareto(self) -> tuple[ParetoMember, ...]:
        """Pareto front of such a search, the cheapest network first."""
