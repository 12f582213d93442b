"""Explain why a layer cannot shrink: a second propagation, which records what froze each width."""

import numpy as np
from torch import fx

from fxsurgery.analysis.propagation import Propagation
from fxsurgery.ops.union_find import Ids, TracedUnionFind
from fxsurgery.program import Program

KEPT = "it is a leaf module"
_NONE: Ids = np.zeros(0, np.int64)


class FrozenReasons:
    """The reasons for which layers of a program keep their widths."""

    def __init__(self, program: Program) -> None:
        self._program, self._ids = program, TracedUnionFind()
        self._nodes = {n.name: n for n in program.nodes}
        self._propagation = Propagation(program, self._ids)
        self._propagation.walk()

    def of(self, name: str) -> str:
        """Return why the work of a node or leaf module cannot shrink."""
        node = self._nodes.get(name) or next((n for n in self._program.nodes if str(n.target) == name), None)
        if node is None or (node.op == "call_module" and not self._weight(node) and self._has_state(node)):
            return KEPT
        weight = self._weight(node)
        if weight is None:
            return "neither operand of its product can shrink"
        return f"outputs kept by {self._cause(weight[0])}, inputs by {self._input_cause(node, weight[1])}"

    def _has_state(self, node: fx.Node) -> bool:
        return bool(self._program.module(node).state_dict())

    def _weight(self, node: fx.Node) -> tuple[Ids, Ids] | None:
        """Return the ids along the first two dims of the weight that a node multiplies by."""
        dims_of = self._propagation.dims
        names = [n for n in dims_of if n.startswith(f"{node.target}.")] if node.op == "call_module" else []
        names += [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        state = dict(self._program.graph_module.named_parameters()) | dict(self._program.graph_module.named_buffers())
        known = (dims_of[name] for name in names if name in dims_of and state[name].dim() > 1)
        # A dim of size 1 has no units.
        return next(((dims.get(0, _NONE), dims.get(1, _NONE)) for dims in known), None)

    def _input_cause(self, node: fx.Node, ids: Ids) -> str:
        """Return what keeps the inputs of a node: what kept them further up, where that is the cause."""
        event = self._ids.cause(ids)
        source = next(iter(node.all_input_nodes), None)
        if event is None or self._propagation.state.freezes[event].node != node.name:
            return self._cause(ids)
        while source is not None and source.op != "placeholder":
            if (weight := self._weight(source)) is not None:
                return self._cause(weight[0])
            source = next(iter(source.all_input_nodes), None)
        return "the model's input"

    def _cause(self, ids: Ids) -> str:
        event = self._ids.cause(ids)
        if event is None:
            return "their size of 1"
        freeze = self._propagation.state.freezes[event]
        is_output = freeze.op == "the model's output"
        return freeze.op if is_output else f"{freeze.op} at {module_name(self._program, freeze.node)}"


def module_name(program: Program, name: str) -> str:
    """Return the path of the module that a node calls, or the name of any other node."""
    node: fx.Node | None = next((n for n in program.nodes if n.name == name), None)
    return str(node.target) if node is not None and node.op == "call_module" else name
