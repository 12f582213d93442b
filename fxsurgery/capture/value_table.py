"""Table of the node that produces each Python value while a graph is recorded."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.capture.outputs import CONSTANT_TYPES
from fxsurgery.capture.size_tape import SizeTape
from fxsurgery.capture.trace import UnsupportedCodeError
from fxsurgery.capture.traced_sizes import is_traced, untraced
from fxsurgery.capture.unsupported_ops import UNREGISTERED


class ValueTable:
    """The values of one run, each with the node that produces it.

    Args:
        graph: the graph being recorded.
        model: the running model; its parameters and buffers are read by name.
        on_node: called with each new node.
        module_path: returns the path of the running module.
        tape: records computations with sizes; None if sizes are plain numbers.
    """

    def __init__(
        self,
        graph: fx.Graph,
        model: nn.Module,
        on_node: Callable[[fx.Node], fx.Node],
        module_path: Callable[[], str],
        tape: SizeTape | None,
    ) -> None:
        self.constants: dict[str, Tensor] = {}
        """Tensors that no recorded call created, by their attribute names in the graph."""
        self._graph, self._on_node, self._module_path, self._tape = graph, on_node, module_path, tape
        self._named: dict[int, str] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._producers: dict[int, str] = {}
        self._alive: list[object] = []
        for name, tensor in state_of(model):
            self._named.setdefault(id(tensor), name)
            self._alive.append(tensor)

    def is_named(self, tensor: Tensor) -> bool:
        """Return True if a tensor was a parameter or buffer of the model before the run."""
        return id(tensor) in self._named

    def node_for(self, value: Any) -> Any:
        """Return `value` with nodes in place of everything that the graph produces.

        Raises:
            UnsupportedCodeError: it contains a value that no node can stand for.
        """
        if is_traced(value) or isinstance(value, np.generic):
            return self._number(value)
        if id(value) in self._nodes:
            return self._nodes[id(value)]
        if isinstance(value, Tensor):
            return self._named_tensor(value)
        if isinstance(value, (list, tuple, dict, slice)) or type(value) in pytree.SUPPORTED_NODES:
            return self._nested(value)
        if isinstance(value, CONSTANT_TYPES):
            return value
        if hasattr(value, "__index__") and not isinstance(value, nn.Module):
            return int(value)
        what = f"a {type(value).__name__} is passed to a torch function or to a leaf module"
        raise UnsupportedCodeError(self._producers.get(id(value), self._module_path()), what)

    def _number(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()  # generated code cannot refer to NumPy's types
        return untraced(value) if self._tape is None else self._tape.operand(value)

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
                raise UnsupportedCodeError(self._module_path(), *UNREGISTERED)
            if tensor.requires_grad:
                what = "no recorded call creates a tensor with gradients that is used (torch.func, a tensor subclass?)"
                raise UnsupportedCodeError(self._producers.get(id(tensor), self._module_path()), what)
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
        # At the top of the graph: a constant that is modified in place must be read only once.
        self._alive.append(tensor)
        with self._graph.inserting_after(self._last_input()):
            node: fx.Node = self._graph.create_node("get_attr", name)
        self._nodes[id(tensor)] = node
        return node

    def _last_input(self) -> fx.Node:
        inputs: list[fx.Node] = [n for n in self._graph.nodes if n.op == "placeholder"]
        return inputs[-1]

    def bind(self, value: Any, node: fx.Node) -> None:
        """Bind `value`, and everything in it, to what `node` produces."""
        if isinstance(value, CONSTANT_TYPES):
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
            if not isinstance(part, CONSTANT_TYPES):
                self.bind(part, self._on_node(self._graph.call_function(read, (node, key))))

    def remember_producer(self, out: Any, path: str) -> None:
        """Remember which module produced unrecorded values: only as a leaf can it pass them to a graph."""
        for leaf in pytree.tree_leaves(out):
            if not isinstance(leaf, CONSTANT_TYPES) and id(leaf) not in self._nodes and id(leaf) not in self._named:
                self._producers.setdefault(id(leaf), path)
                self._alive.append(leaf)


def state_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a model, under every name."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
