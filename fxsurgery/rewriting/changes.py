"""A change of what a node gives, what it asks of the nodes downstream, and how far it has reached."""

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
    """The edits that a change asks for; nothing is edited yet."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    arguments: list[tuple[fx.Node, int | str, Any]] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    is_exact: bool = True
    """Whether the outputs stay the same in eval mode, if `Change.is_linear`."""
    uses_statistics: bool = False
    """Whether they do in eval mode alone: a batch norm stands between."""

    def apply(self, edit: Editor) -> None:
        """Make the edits."""
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
    """What the readers of `node` will read in its place."""

    node: fx.Node
    value: Tensor
    """On the example inputs."""
    own: Map
    is_linear: bool = False
    """Whether `old = A new` for the A that `own.factors` are made from, so that a dense layer can give the same."""
    keeps_constants: bool = True
    """Whether A's rows sum to 1: an offset added before A is the same as one added after."""
    are_copies: bool = False
    """Whether each channel of the new value is one of the old: a norm repeats its entries."""


class ObstacleError(Exception):
    """What stands in the way of a change; a walk ends with it, and nobody else sees it."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(str(node), reason)


@dataclass(frozen=True)
class CallChange:
    """The arguments of a node, with nodes for values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, value: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
        """The arguments with the value of each node."""
        return fx.node.map_arg(self.args, value), fx.node.map_arg(self.kwargs, value)


@dataclass(eq=False)
class Changed:
    """What a walk of the graph knows at a node: values before, and after where the change reaches."""

    program: Program
    change: Change
    taker: Taker
    run: "Run"
    graph_module: nn.Module
    """What runs: the program's, or its twin on meta tensors."""
    found: Consequences
    env: dict[fx.Node, Any] = field(default_factory=dict)
    """By node, what it gives before the change."""
    values: dict[fx.Node, Any] = field(default_factory=dict)
    """By node that the change reaches: what it gives then."""
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    """Of those, where it is known which entry is which."""

    def now(self, node: fx.Node) -> Any:
        """What a node gives after the change."""
        return self.values[node] if node in self.values else self.env[node]

    def is_moving(self, node: fx.Node) -> bool:
        """Whether a node only moves entries."""
        operator = self.program.operator(node)
        return operator is not None and operator.rearranges


class Run(Protocol):
    """Runs a node with the value of each node among its arguments."""

    def __call__(self, node: fx.Node, call: CallChange, value: Callable[[fx.Node], Any]) -> Any:
        """What the node gives."""


def holds_tensors(value: Any) -> bool:
    """Whether a value is a tensor, or holds one."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
