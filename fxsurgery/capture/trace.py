"""The recording of one run of a model, and the error for code that no graph can represent."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx
from torch.utils import _pytree as pytree

REWRITE = "Write it in differentiable torch operations"
NO_AUTOCAST = "Remove it from forward, and enter autocast where the model is called"
NO_LOOP = "Write the loop as tensor operations"
DETACH = "Remove it from forward: call detach() on tensors, or set requires_grad=False on parameters"
"""Remedies for code that a graph cannot represent, as sentences without a period."""


class UnsupportedCodeError(Exception):
    """Forward did something that a graph cannot represent.

    Args:
        path: path of the innermost module in which it happened; "" for the model itself.
        what: the fact.
        remedy: what the user can do instead, as a sentence without a period.
        line: the user's line as `file:line: source`; empty to take it from the traceback.
    """

    def __init__(self, path: str, what: str, remedy: str = REWRITE, line: str = "") -> None:
        super().__init__(what)
        self.path, self.remedy, self.line = path, remedy, line


@dataclass(frozen=True, eq=False)
class Recording:
    """The operations of one run."""

    graph: fx.Graph
    """The graph; it returns the flat list of outputs."""
    structure: pytree.TreeSpec
    """The pytree structure of the model's output."""
    constants: Mapping[str, Tensor]
    """Tensors that no recorded call created, by their attribute names in the graph."""
    entered: tuple[str, ...]
    """Paths of the modules whose code was recorded."""
    notes: tuple[str, ...] = ()
