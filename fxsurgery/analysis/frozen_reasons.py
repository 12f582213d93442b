"""Explain why a layer cannot shrink: a second propagation, which records what froze each width."""

import numpy as np
from torch import fx

from fxsurgery.analysis.layer_paths import layer_name
from fxsurgery.analysis.propagation import MODEL_OUTPUT, SIZE_AS_NUMBER, SLICE_BY_INPUT, Propagation
from fxsurgery.ops.union_find import Ids, TracedUnionFind
from fxsurgery.program import Program

KEPT = "it is a leaf module, which surgery leaves as it is"
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
            return "both factors of this product keep their size"
        return f"{self._clause(weight[0], 'outputs')}; {self._input_clause(node, weight[1])}"

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

    def _input_clause(self, node: fx.Node, ids: Ids) -> str:
        """Return why the inputs of a node stay: the reason that is further up, where its inputs come from."""
        event = self._ids.cause(ids)
        source = next(iter(node.all_input_nodes), None)
        if event is None or self._propagation.state.freezes[event].node != node.name:
            return self._clause(ids, "inputs")
        while source is not None and source.op != "placeholder":
            if (weight := self._weight(source)) is not None:
                return self._clause(weight[0], "inputs")
            source = next(iter(source.all_input_nodes), None)
        return "its inputs are the model's input"

    def _clause(self, ids: Ids, side: str) -> str:
        """Return why all `ids` stay, as a clause.

        Args:
            ids: the ids along one dim of a weight.
            side: `outputs` or `inputs`, for the text.
        """
        event = self._ids.cause(ids)
        if event is None:
            return f"it has a single {side.removesuffix('s')}"
        freeze = self._propagation.state.freezes[event]
        place = layer_name(self._program, freeze.node)
        if freeze.op in _CLAUSES:
            return _CLAUSES[freeze.op].format(side=side, place=place)
        where = "" if place == freeze.op else f" (at {place})"
        return f"{freeze.op}{where} needs all of its {side}"


_CLAUSES = {
    MODEL_OUTPUT: "its {side} are the model's output",
    SIZE_AS_NUMBER: "forward computes with the number of its {side} (at {place})",
    SLICE_BY_INPUT: "its {side} are sliced at bounds that depend on the size of the model's input (at {place})",
}
"""Reasons that are no operation's name, as clauses."""
