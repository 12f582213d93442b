"""Plan and outcome of a search: the stages that it trains, and the network that it found."""

from dataclasses import dataclass

from fxsurgery.budget import CostEstimate
from fxsurgery.program import Program
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord
from fxsurgery.training import Score


@dataclass(frozen=True)
class Stage:
    """A stage that a search will go through."""

    name: str
    steps: int
    """Optimizer steps."""
    validations: int | None = None
    """Number of validation passes; `None` follows the training loop's default."""


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """What a search found."""

    program: Program
    """The smaller program, fine-tuned."""
    trained: Program
    """The program that was pruned: the one given, or that after the weights stage."""
    before: Score
    """Validation score of `trained`."""
    pruned: Score | None
    """Validation score right after pruning and re-estimating the batch norms; `None` where there is no such moment."""
    after: Score
    """Validation score of `program`."""
    notes: tuple[str, ...] = ()
    gates: tuple[float, ...] = ()
    """Each gate at the end of the architecture stage."""
    search: SearchRecord | None = None
    """The trials of a search that trains many networks."""
    pareto: tuple[ParetoMember, ...] = ()
    """The front that it found."""
    latency: CostEstimate | None = None
    """Of `program`, as it was verified; `None` where the budget does not limit it."""
