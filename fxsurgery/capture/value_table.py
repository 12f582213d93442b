"""Which node of a graph gives each value that Python holds while the graph is recorded."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.capture.outputs import CONSTANTS
from fxsurgery.capture.size_tape import SizeTape
from fxsurgery.capture.trace import OffenceError
from fxsurgery.capture.traced_sizes import is_traced, plain
from fxsurgery.capture.unsupported_ops import UNREGISTERED


class ValueTable:
    """The values of one run, each with the node that gives it.

    Args:
        graph: what is being recorded.
        model: what runs; its parameters and buffers are read by name.
        made: called with each new node.
        inside: gives the path of the module that is running.
        tape: records what is computed from sizes; `None` where sizes are plain numbers.
    """

    def __init__(
        self,
        graph: fx.Graph,
        model: nn.Module,
        made: Callable[[fx.Node], fx.Node],
        inside: Callable[[], str],
        tape: SizeTape | None,
    ) -> None:
        self.constants: dict[str, Tensor] = {}
        """Tensors that no recorded call made, by the names under which the graph reads them."""
        self._graph, self._made, self._inside, self._tape = graph, made, inside, tape
        self._named: dict[int, str] = {}
        for name, tensor in state_of(model):
            self._named.setdefault(id(tensor), name)
        self._nodes: dict[int, fx.Node] = {}
        self._makers: dict[int, str] = {}
        self._alive: list[object] = []

    def is_named(self, tensor: Tensor) -> bool:
        """Whether a tensor was a parameter or buffer of the model before the run."""
        return id(tensor) in self._named

    def node_for(self, value: Any) -> Any:
        """`value` with nodes for what the graph made."""
        if is_traced(value) or isinstance(value, np.generic):
            return self._number(value)
        if id(value) in self._nodes:
            return self._nodes[id(value)]
        if isinstance(value, Tensor):
            return self._named_tensor(value)
        if isinstance(value, (list, tuple, dict, slice)) or type(value) in pytree.SUPPORTED_NODES:
            return self._nested(value)
        if isinstance(value, CONSTANTS):
            return value
        if hasattr(value, "__index__") and not isinstance(value, nn.Module):
            return int(value)
        what = f"a {type(value).__name__} is handed to a torch function or a module that is kept whole"
        raise OffenceError(self._makers.get(id(value), self._inside()), what)

    def _number(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()  # the code of a graph cannot name NumPy's types
        return plain(value) if self._tape is None else self._tape.operand(value)

    def _nested(self, value: Any) -> Any:
        if isinstance(value, slice):
            return slice(*(self.node_for(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, (list, tuple)):
            parts = [self.node_for(v) for v in value]
            container = tuple if isinstance(value, torch.Size) else type(value)
            return container(*parts) if hasattr(value, "_fields") else container(parts)
        if type(value) is dict:
            return {k: self.node_for(v) for k, v in value.items()}
        leaves, spec = pytree.tree_flatten(value)
        if len(leaves) == 1 and leaves[0] is value:
            return {k: self.node_for(v) for k, v in value.items()}
        return pytree.tree_unflatten([self.node_for(leaf) for leaf in leaves], spec)

    def _named_tensor(self, tensor: Tensor) -> fx.Node:
        name = self._named.get(id(tensor))
        if name is None:
            if isinstance(tensor, nn.Parameter):
                raise OffenceError(self._inside(), *UNREGISTERED)
            if tensor.requires_grad:
                what = (
                    "a tensor with gradients is made by no call that can be recorded (torch.func, a tensor subclass?)"
                )
                raise OffenceError(self._makers.get(id(tensor), self._inside()), what)
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
        # At the top: a constant that is written to in place must be read once.
        self._alive.append(tensor)
        with self._graph.inserting_after(self._last_input()):
            node: fx.Node = self._graph.create_node("get_attr", name)
        self._nodes[id(tensor)] = node
        return node

    def _last_input(self) -> fx.Node:
        inputs: list[fx.Node] = [n for n in self._graph.nodes if n.op == "placeholder"]
        return inputs[-1]

    def bind(self, value: Any, node: fx.Node) -> None:
        """Let `value`, and what is in it, be what `node` gives."""
        if isinstance(value, CONSTANTS):
            return
        self._nodes[id(value)] = node
        self._alive.append(value)
        if isinstance(value, Tensor):
            return
        read: Any = operator.getitem
        if isinstance(value, Mapping):
            parts = dict(value)
        elif isinstance(value, (list, tuple)):
            parts = dict(enumerate(value))
        else:
            read, parts = getattr, getattr(value, "__dict__", {})
        for key, part in parts.items():
            if not isinstance(part, CONSTANTS):
                self.bind(part, self._made(self._graph.call_function(read, (node, key))))

    def remember(self, out: Any, path: str) -> None:
        """Note what no recorded call made: only its module, kept whole, could give it to a graph."""
        for leaf in pytree.tree_leaves(out):
            if not isinstance(leaf, CONSTANTS) and id(leaf) not in self._nodes and id(leaf) not in self._named:
                self._makers.setdefault(id(leaf), path)
                self._alive.append(leaf)


def state_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a model, by every name."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
