"""A change of a node's output, the edits it requires downstream, and the state of its propagation."""

# ruff: noqa: ANN401 -- values of the user's graph

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.analysis.spatial_maps import Layout, Map, Taker
from fxsurgery.edit import Editor
from fxsurgery.lineage import Origin
from fxsurgery.match import Refusal
from fxsurgery.program import Program


@dataclass(eq=False)
class Consequences:
    """Edits that a change requires, collected before any of them is made."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    arguments: list[tuple[fx.Node, int | str, Any]] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    is_exact: bool = True
    """Whether the program's outputs stay the same in eval mode, given `Change.is_linear`."""
    uses_statistics: bool = False
    """Whether they stay the same only in eval mode, because the change passes a batch norm."""

    def apply(self, edit: Editor) -> None:
        """Make the edits through `edit`."""
        for path, module in self.modules.items():
            edit.replace_module(path, module)
        for path, tensor in self.tensors.items():
            edit.replace_tensor(path, tensor)
        for node, key, value in self.arguments:
            edit.set_argument(node, key, value)
        for name, origin in self.origins.items():
            edit.record_origin(name, origin)


@dataclass(frozen=True, eq=False)
class Change:
    """A new value for a node."""

    node: fx.Node
    value: Tensor
    """New value on the example inputs."""
    own: Map
    is_linear: bool = False
    """Whether `old = A new` for the A behind `own.factors`, so that a dense layer can absorb the change exactly."""
    keeps_constants: bool = True
    """Whether the rows of A sum to 1, so that a constant offset commutes with A."""
    are_copies: bool = False
    """Whether each channel of the new value is a copy of an old one, so that a norm can repeat its entries."""


class ObstacleError(Exception):
    """The reason why a change cannot be made. Ends the propagation; never reaches a caller of `follow`."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(str(node), reason)


@dataclass(frozen=True)
class CallChange:
    """The arguments of a node, with nodes in place of values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, value: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
        """Return the arguments with each node replaced by its value."""
        return fx.node.map_arg(self.args, value), fx.node.map_arg(self.kwargs, value)


@dataclass(eq=False)
class ChangeState:
    """State of the propagation: values before the change, and after it for the nodes that it affects."""

    program: Program
    change: Change
    taker: Taker
    run: "Run"
    graph_module: nn.Module
    """The module that runs: the program's own, or its copy on meta tensors."""
    found: Consequences
    env: dict[fx.Node, Any] = field(default_factory=dict)
    """Value of each node before the change."""
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """Value of each affected node after the change."""
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    """Layouts of the affected nodes whose entries can be matched between old and new value."""

    def now(self, node: fx.Node) -> Any:
        """Return the value of a node after the change."""
        return self.values[node] if node in self.values else self.env[node]

    def is_moving(self, node: fx.Node) -> bool:
        """Return True if a node only rearranges entries."""
        operator = self.program.operator(node)
        return operator is not None and operator.rearranges


class Run(Protocol):
    """Runs a node, given the value of each node among its arguments."""

    def __call__(self, node: fx.Node, call: CallChange, value: Callable[[fx.Node], Any]) -> Any:
        """Return the value of the node."""


def holds_tensors(value: Any) -> bool:
    """Return True if a value is or contains a tensor."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
