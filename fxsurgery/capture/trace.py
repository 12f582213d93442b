"""What one run of a model did, and what it did that no graph can hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx
from torch.utils import _pytree as pytree

REWRITE = "Write it in differentiable torch operations"


class OffenceError(Exception):
    """A graph cannot hold what happened; `path` is the innermost of the user's modules where it did."""

    def __init__(self, path: str, what: str, remedy: str = REWRITE, line: str = "") -> None:
        super().__init__(what)
        self.path, self.remedy, self.line = path, remedy, line


@dataclass(frozen=True, eq=False)
class Recording:
    """What one run did."""

    graph: fx.Graph
    """It returns the flat list of what the model returned."""
    structure: pytree.TreeSpec
    """The structure of what the model returned."""
    constants: Mapping[str, Tensor]
    """Tensors that no recorded call made, by the names under which the graph reads them."""
    entered: tuple[str, ...]
    """Paths of the modules whose code was recorded."""
    notes: tuple[str, ...] = ()
