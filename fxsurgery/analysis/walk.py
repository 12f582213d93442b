"""Run a program on meta tensors and let the rules see every ATen operation.

The operations are met under a `TorchDispatchMode`, so the rules know ATen alone, while whatever they
notice is booked under the node of the user's graph that is being run. A shape that the graph computes
(`x.size(1) // 2`) and then uses as a number, not as a shape, freezes the dim that it came from.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fxsurgery.analysis.atoms import Ids
from fxsurgery.analysis.labels import Labels, varying
from fxsurgery.analysis.macs import macs_of
from fxsurgery.analysis.provenance import Provenance, Work
from fxsurgery.analysis.rules import Call, rule_for
from fxsurgery.analysis.rules.call import base_name
from fxsurgery.analysis.rules.movement import CREATIONS, LIKE, MOVES, SAME
from fxsurgery.analysis.shapes import hides_its_shape, is_resizable, is_sized, target_name
from fxsurgery.program import Program

FREE = {*SAME, *LIKE, *MOVES, *CREATIONS, "slice", "cat", "stack", "roll", "flip"}
"""Operations that compute nothing: not named among what the MACs leave out."""


LAYER_NORMS = {"layer_norm", "native_layer_norm", "rms_norm"}
GROUPED = {"convolution", "_convolution", "group_norm", "native_group_norm"}


RESHAPES = {"view", "_unsafe_view", "reshape", "expand", "split", "slice", "repeat", "select", "constant_pad_nd"}
"""Operations that are told sizes."""

COUNTS = {"size", "numel", "len", "__len__", "nelement"}
"""Functions and methods that give a tensor's extents."""

_Source = tuple[fx.Node, tuple[int, ...]]
"""A tensor, and those of its dims that a number came from."""


class Walk(fx.Interpreter):
    """One run of a program on meta tensors."""

    def __init__(self, program: Program) -> None:
        tensors = [*program.graph_module.parameters(), *program.graph_module.buffers()]
        metas = {id(t): _meta(t) for t in tensors}
        on_meta = copy.deepcopy(program.graph_module, dict(metas))
        super().__init__(on_meta, garbage_collect_values=False)
        self.state = Provenance()
        self.values: dict[str, Any] = {}
        self.dims: dict[str, dict[int, Ids]] = {}
        self.uncounted: dict[str, None] = {}
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = list(metas.values())
        self._sizes: dict[fx.Node, set[_Source]] = {}
        self._batch = 1
        self._hidden = self._in_module = False
        self._label_parameters(on_meta)
        self._inputs = [_meta(x) if isinstance(x, Tensor) else x for x in program.examples.leaves]
        self._batch = program.examples.batch or 1

    def walk(self) -> None:
        """Run the program; `state` and `values` are complete afterwards."""
        with torch.no_grad(), torch.device("meta"), _Watch(self):
            self.run(*self._inputs, enable_io_processing=False)
        self.state.run_later()
        self._make_product_grids()

    def _make_product_grids(self) -> None:
        """Tie until every plane varies along one dim: then reshapes commute with the removal of units."""
        changed = True
        while changed:
            changed = False
            for labels in self._labels.values():
                self.state.refresh(labels)
                if any(len(varying(plane)) > 1 for plane in labels.planes):
                    self.state.resolve(labels)
                    changed = True

    @override
    def run_node(self, n: fx.Node) -> Any:
        self.state.node, self.state.op = n.name, n.op
        self._hidden, self._in_module = hides_its_shape(n, self.module), n.op == "call_module"
        self._note_sizes(n)
        result = super().run_node(n)
        self._book(n, result)
        return result

    def _book(self, node: fx.Node, result: object) -> None:
        leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self.state.op = "shape used as a number"
        if leaves:
            if not is_sized(node):
                self._freeze_sizes(node)
            self._sizes.pop(node, None)
        if node.op == "output":
            self.state.op = "the model's output"
            for leaf in leaves:
                self.state.freeze_all(self.labels(leaf))
        self.values[node.name] = pytree.tree_map_only(Tensor, self.labels, result)

    def _note_sizes(self, node: fx.Node) -> None:
        """Remember which dims the numbers that `node` gives or passes on came from."""
        name = target_name(node)
        source = node.args[0] if node.args else None
        counts = name in COUNTS or (name == "getattr" and node.args[1] == "shape")
        if counts and isinstance(source, fx.Node) and isinstance(self.env.get(source), Tensor):
            dims = tuple(range(self.env[source].dim()))
            chosen = node.args[1] if name == "size" and len(node.args) > 1 else node.kwargs.get("dim")
            self._sizes[node] = {(source, (dims[chosen],) if isinstance(chosen, int) else dims)}
            return
        sources = set[_Source]().union(*(self._sizes.get(n, ()) for n in node.all_input_nodes))
        if name == "getitem" and len(node.args) > 1 and not isinstance(node.args[1], fx.Node):
            sources = {(tensor, _picked(dims, node.args[1])) for tensor, dims in sources}
        if sources:
            self._sizes[node] = sources

    def numbers(self) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
        """By node: the tensors and dims that the number it gives came from."""
        return {n.name: tuple((t.name, dims) for t, dims in found) for n, found in self._sizes.items()}

    def _freeze_sizes(self, node: fx.Node) -> None:
        for number in node.all_input_nodes:
            for tensor, dims in self._sizes.get(number, ()):
                labels = self.labels(self.env[tensor])
                for dim in dims:
                    self.state.freeze(self.state.vector(labels, dim))

    def labels(self, tensor: Tensor) -> Labels:
        """What is known of a tensor; one that was not met before carries no label."""
        if (known := self._labels.get(id(tensor))) is None:
            known = self._remember(tensor, Labels(tuple(tensor.shape)))
        return known

    def _remember(self, tensor: Tensor, labels: Labels) -> Labels:
        self._labels[id(tensor)] = labels
        self._alive.append(tensor)
        return labels

    def _label_parameters(self, root: fx.GraphModule) -> None:
        """Fresh atoms for each dim of each parameter and buffer; none inside what cannot be resized."""
        opaque = [n for n, m in _called(root) if not is_resizable(m)]
        named = [*root.named_parameters(), *root.named_buffers()]
        for name, tensor in named:
            if any(name.startswith(f"{path}.") for path in opaque):
                self._remember(tensor, Labels(tuple(tensor.shape)))
                continue
            ids = {d: self.state.atoms.fresh(n) for d, n in enumerate(tensor.shape) if n > 1}
            self.dims[name] = ids
            self._remember(tensor, self.state.labelled(tensor.shape, ids))

    def meet(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:  # noqa: ANN401
        """Take one ATen operation in."""
        results = tuple(r for r in pytree.tree_leaves(result) if isinstance(r, Tensor))
        if not results:
            return
        given = pytree.tree_map_only(Tensor, self._current, args)
        named = pytree.tree_map_only(Tensor, self._current, kwargs)
        call = Call(op, given, named, results)
        self.state.op, self.state.work_dims = call.name, ()
        for tensor, labels in zip(results, self._outcome(call), strict=True):
            self._remember(tensor, labels)
        self._count(call, args, result)

    def _current(self, tensor: Tensor) -> Labels:
        labels = self.labels(tensor)
        self.state.refresh(labels)
        return Labels(labels.shape, list(labels.planes))

    def _outcome(self, call: Call) -> Sequence[Labels]:
        rule = rule_for(call)
        if rule is not None and not self._hides_a_shape(call):
            return self._keep_constants(call, rule(self.state, call))
        labelled = [t for t in call.tensors() if t.planes]
        if labelled and rule is None:
            self.state.unknown.setdefault(call.name, []).append(self.state.node)
        for labels in labelled:
            self.state.freeze_all(labels)
        return [Labels(tuple(r.shape)) for r in call.results]

    def _keep_constants(self, call: Call, results: Sequence[Labels]) -> Sequence[Labels]:
        """Freeze what a norm or grouped conv is told the size of where no module holds that number."""
        grouped = self.state.node in self.state.group_width and call.name in GROUPED
        if (grouped or call.name in LAYER_NORMS) and not (self._in_module and len(call.tensors()) > 1):
            for labels in results:
                self.state.freeze_all(labels)
        return results

    def _hides_a_shape(self, call: Call) -> bool:
        """Whether labelled data is reshaped by numbers that stand where no rewrite reaches them."""
        if call.name not in RESHAPES:
            return False
        return self._hidden and any(t.planes for t in call.tensors())

    def _count(self, call: Call, args: Sequence[Any], result: object) -> None:
        macs = macs_of(call.name, args, result)
        if macs is not None:
            dims = self.state.work_dims
            self.state.work.append(Work(self.state.node, call.name, macs / self._batch, dims))
        elif call.name not in FREE:
            self.uncounted[base_name(call.op)] = None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every ATen operation of a walk over, after it ran."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._walk = walk

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        self._walk.meet(func, args, kwargs or {}, result)
        return result


def _picked(dims: tuple[int, ...], index: object) -> tuple[int, ...]:
    """Which dims an entry or a part of a shape came from."""
    if len(dims) > 1 and isinstance(index, int):
        return (dims[index],)
    return dims[index] if len(dims) > 1 and isinstance(index, slice) else dims


def _called(root: fx.GraphModule) -> list[tuple[str, nn.Module]]:
    paths = dict.fromkeys(str(n.target) for n in root.graph.nodes if n.op == "call_module")
    return [(path, root.get_submodule(path)) for path in paths]


def _meta(tensor: Tensor) -> Tensor:
    on_meta = tensor.detach().to("meta")
    return nn.Parameter(on_meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else on_meta
