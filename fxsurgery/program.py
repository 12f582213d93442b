"""`Program`, the captured model that all parts of the package work on."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_aggregate
from typing_extensions import override

from fxsurgery.calls import checked_construction
from fxsurgery.errors import VerifyError, reason_of
from fxsurgery.inputs import BatchDims, Inputs, tensors_in
from fxsurgery.ops import registry
from fxsurgery.ops.operator import Operator
from fxsurgery.printable import printable
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.taps import tapped

M = TypeVar("M", bound=nn.Module)


@checked_construction
@dataclass(frozen=True, eq=False)
class Program:
    """A captured model with the inputs it was captured on, in eval mode.

    A `Program` is never mutated once built: a pass returns a new one, which shares every tensor that the
    pass did not replace. So a fact about it, once worked out, holds for good, and one program can be the
    parent of many. What trains is `trainable_copy()`; `with_weights` makes a program of it again.
    """

    graph_module: fx.GraphModule
    """The model, called like the user's; its graph has one placeholder for each leaf of the inputs' structure."""
    example_inputs: tuple[Any, ...]
    """Positional example inputs: tensors, or tuples, lists and dicts of them."""
    log: tuple[str, ...] = ()
    """Texts of the passes that led to it, oldest first; `fxsurgery.passes.replay` applies them again."""
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword example inputs."""
    notes: tuple[str, ...] = ()
    """Notes on the capture: leaf modules with the reason, checks that could not be made."""
    name: str = "Model"
    """Class name of the user's model."""
    batch_dims: BatchDims | None = None
    """Batch dim of each tensor among the example inputs, as in `Inputs.batch_dims`."""
    samples: int | None = None
    """Number of samples in the example inputs if no dim of them has that size, as in `Inputs.samples`."""

    def __post_init__(self) -> None:
        self.verify()

    @override
    def __repr__(self) -> str:
        return f"<Program of {printable(self.name)}: {len(self.nodes)} nodes, {len(self.log)} passes>"

    def __call__(self, *inputs: Any, **named: Any) -> object:  # noqa: ANN401
        """Run the model."""
        return self.graph_module(*inputs, **named)

    @property
    def examples(self) -> Inputs:
        """The positional and keyword example inputs."""
        return Inputs(self.example_inputs, self.example_kwargs, self.batch_dims, self.samples)

    @plain_surroundings()
    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """Return the output tensors for `inputs`, which are not modified, in eval mode and without gradients."""
        own = inputs.clone()
        with torch.no_grad():
            output = self.graph_module(*own.args, **own.kwargs)
        return [tensor for _, tensor in tensors_in(output)]

    def run_examples(self) -> list[Tensor]:
        """Return the output tensors for the example inputs."""
        return self.outputs(self.examples)

    def module(self, node: fx.Node) -> nn.Module:
        """Return the module that a `call_module` node calls."""
        return self.graph_module.get_submodule(str(node.target))

    def operator(self, node: fx.Node) -> Operator | None:
        """Return the declared operator that `node` calls, in any spelling; `None` if it calls none."""
        return registry.of(node, self.module(node) if node.op == "call_module" else None)

    def attribute(self, path: str) -> object:
        """Return the tensor that a `get_attr` node with this target reads."""
        return _attribute(self.graph_module, path)

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Every node, in execution order."""
        return tuple(self.graph_module.graph.nodes)

    def calls(self, *types: type[M]) -> Iterator[tuple[fx.Node, M]]:
        """Yield the nodes that call a module of one of `types`, each with its module, in execution order."""
        for node in self.nodes:
            if node.op == "call_module" and isinstance(module := self.module(node), types):
                yield node, module

    def draft(self) -> fx.GraphModule:
        """Return a copy of graph and modules that shares every tensor, to edit and recompile, not to train."""
        twin = fx.GraphModule.__new__(fx.GraphModule)
        _copy_state(self.graph_module, twin, {})
        graph = copy.deepcopy(self.graph_module.graph)
        graph.owning_module = twin
        twin._graph = graph  # noqa: SLF001 -- the public way compiles it, and an edited draft is compiled anyway
        return twin

    @plain_surroundings()
    def trainable_copy(self) -> fx.GraphModule:
        """Return a copy that shares no tensor, to train."""
        return copy.deepcopy(self.graph_module)

    def tapped(self, nodes: Sequence[str]) -> fx.GraphModule:
        """Return a module that returns the outputs and the values at some nodes, e.g. a teacher with its features.

        It shares the tensors of the program and none of its modules. It is in eval mode; to train, take
        `fxsurgery.taps.tapped(copy, nodes)` of a `trainable_copy()`.

        Args:
            nodes: names of nodes, as `text()` shows them.

        Returns:
            A module that is called as the program is, and gives (outputs, {name: value at that node}).

        Raises:
            SpecError: there is no such node, or it is inside a leaf module.
        """
        return tapped(self.draft(), nodes)

    def with_weights(self, trained: fx.GraphModule) -> Self:
        """Return the program with the weights of `trained`, a trained copy of it, which is not copied again."""
        return replace(self, graph_module=trained.eval())

    @plain_surroundings()
    def in_double(self) -> Self:
        """Return the program in float64, without shared memory, to distinguish rounding from mistakes."""
        wide = self.examples.map(lambda x: x.double() if x.is_floating_point() else x.clone())
        graph_module = self.trainable_copy().double()
        for node in graph_module.graph.nodes:
            # What the model itself takes to float32, for precision, would be rounded there.
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _widened)
            if node.op == "call_method" and node.target == "float":
                node.target = "double"
        graph_module.recompile()
        return replace(self, graph_module=graph_module, example_inputs=wide.args, example_kwargs=wide.kwargs)

    def text(self) -> str:
        """Return one line for each node, in execution order; equal text means equal structure."""
        return "\n".join(_line(self.graph_module, node) for node in self.nodes)

    def verify(self) -> None:
        """Raise `VerifyError` unless the graph is well formed, in eval mode, and uses every module."""
        if not isinstance(self.graph_module, fx.GraphModule):
            raise VerifyError(
                f"a program holds a torch.fx.GraphModule, not a {type(self.graph_module).__name__}: capture(model, x) "
                "makes one"
            )
        try:
            self.graph_module.graph.lint()
        except (AssertionError, RuntimeError) as error:
            raise VerifyError(f"malformed graph: {reason_of(error)}") from error
        if self.graph_module.training:
            raise VerifyError("a program is kept in eval mode; train a trainable_copy() of it")
        called = {str(n.target) for n in self.nodes if n.op in {"call_module", "get_attr"}}
        leaves = _leaves(self.graph_module)
        if unused := sorted(leaves - _covered(called, leaves)):
            raise VerifyError(f"modules that no node calls: {', '.join(unused)}")


def _widened(value: Any) -> Any:  # noqa: ANN401 -- any argument of a node
    return torch.float64 if value is torch.float32 else value


def _copy_state(module: nn.Module, twin: nn.Module, known: dict[int, object]) -> nn.Module:
    """Fill `twin` with the state of `module`: new containers and submodules, the same tensors."""
    known[id(module)] = twin
    state = twin.__dict__
    for name, value in vars(module).items():
        if type(value) in _CONTAINERS:
            state[name] = value.copy()
        else:
            state[name] = copy.copy(value) if isinstance(value, (dict, list)) else value
    children = twin.__dict__["_modules"]
    for name, child in children.items():
        children[name] = None if child is None else known.get(id(child)) or _twin(child, known)
    return twin


_CONTAINERS = {dict, list, OrderedDict}
"""Containers with a `copy` method, which is much faster than `copy.copy`."""


def _twin(module: nn.Module, known: dict[int, object]) -> nn.Module:
    if type(module).__module__.startswith("torch.nn") and hasattr(nn, type(module).__name__):
        return _copy_state(module, type(module).__new__(type(module)), known)
    known |= {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, known)


def _leaves(root: nn.Module) -> set[str]:
    return {name for name, module in root.named_modules() if name and next(module.children(), None) is None}


def _covered(called: set[str], leaves: set[str]) -> set[str]:
    """The leaves that a call, or the reading of an attribute, reaches."""
    return {
        leaf
        for leaf in leaves
        if leaf in called or any(leaf.startswith(f"{c}.") or c.startswith(f"{leaf}.") for c in called)
    }


def _line(graph_module: fx.GraphModule, node: fx.Node) -> str:
    what: str | Callable[..., object] = node.target
    if node.op == "call_module":
        what = repr(graph_module.get_submodule(str(node.target)))
    if node.op == "get_attr" and isinstance(found := _attribute(graph_module, str(node.target)), Tensor):
        what = f"{node.target}: {tuple(found.shape)}"
    if callable(what):
        what = getattr(what, "__name__", str(what))
    arguments = ", ".join([*map(_show, node.args), *(f"{k}={_show(v)}" for k, v in node.kwargs.items())])
    return f"%{node} = {node.op} {what}({arguments})" if node.op != "output" else f"return {arguments}"


def _attribute(root: nn.Module, path: str) -> object:
    owner, _, leaf = path.rpartition(".")
    return getattr(root.get_submodule(owner), leaf)


def _show(argument: Argument) -> str:
    return str(fx.node.map_arg(argument, lambda node: f"%{node}"))
