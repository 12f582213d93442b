"""Run a program on meta tensors and let the rules see every ATen operation.

The operations are met under a `TorchDispatchMode`, so the rules know ATen alone, while whatever they
notice is booked under the node of the user's graph that is being run. What cannot run on meta tensors (a
module kept whole, an operation without shapes) is looked up in one real run; what flows into it freezes.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fxsurgery.analysis.fast_aten import run_on_meta
from fxsurgery.analysis.fast_shapes import computes_no_tensor, plain_function, plain_module
from fxsurgery.analysis.macs import has_unknown_macs, macs_of
from fxsurgery.analysis.real_run import is_kept_whole, on_meta, real_run
from fxsurgery.analysis.refit import is_resizable
from fxsurgery.analysis.shapes import hides_its_shape, is_sized, target_name
from fxsurgery.analysis.size_expressions import Numbers, computed_slices
from fxsurgery.ops import registry
from fxsurgery.ops.facets import SizeRule
from fxsurgery.ops.fast.plain import Plain
from fxsurgery.ops.labels import Labels, along, varying
from fxsurgery.ops.propagation_state import Attention, Provenance, Work
from fxsurgery.ops.rules.call import Call, base_name
from fxsurgery.ops.rules.recurrent import end_shapes, recurrent
from fxsurgery.ops.union_find import Atoms, Ids
from fxsurgery.program import Program

KEPT_WHOLE = "kept whole"
"""The operation of work that was counted in a real run."""

ATEN = torch.ops.aten
META = torch.device("meta")

NO_META = (NotImplementedError, RuntimeError)
"""What an operation raises that cannot run on meta tensors."""


class Walk(fx.Interpreter):
    """One run of a program on meta tensors."""

    def __init__(self, program: Program, atoms: Atoms | None = None, attention: Attention = "heads") -> None:
        super().__init__(program.graph_module, garbage_collect_values=False)
        named = [*program.graph_module.named_parameters(), *program.graph_module.named_buffers()]
        self._metas = {id(t): on_meta(t) for _, t in named}
        self._modules, self._called = dict[str, nn.Module](), _called(program.graph_module)
        self.state = Provenance(atoms or Atoms(), attention)
        self.values: dict[str, Any] = {}
        self.dims: dict[str, dict[int, Ids]] = {}
        self.uncounted: dict[str, None] = {}
        self.unknown_macs: dict[str, dict[str, None]] = {}
        """Nodes by operation."""
        self.numbers = Numbers()
        self.masks = set[str]()
        self._program = program
        self._fixed = set(map(id, self._metas.values()))
        self._moving = _reached_by_inputs(program)
        self._labels: dict[int, Labels] = {}
        self._alive = list[Tensor]()
        self._hidden = self._in_module = False
        self._watch = _Watch(self)
        self._label_tensors(named)
        self._inputs = [on_meta(x) if isinstance(x, Tensor) else x for x in program.examples.leaves]
        self._batch = program.examples.batch or 1

    def walk(self) -> None:
        """Run the program; `state` and `values` are complete afterwards."""
        with torch.no_grad():
            self.run(*self._inputs, enable_io_processing=False)
        self.state.run_later()
        self._make_product_grids()

    def _make_product_grids(self) -> None:
        """Tie until every plane varies along one dim: then reshapes commute with the removal of units."""
        waiting = [labels for labels in self._labels.values() if labels.planes]
        while True:
            version = self.state.atoms.version
            for labels in self.state.stale(waiting):
                self.state.resolve(labels)
            if self.state.atoms.version == version:
                return

    @override
    def run_node(self, n: fx.Node) -> Any:
        self.state.node, self.state.op, self._in_module = n.name, n.op, n.op == "call_module"
        self._hidden = hides_its_shape(n, self._module(str(n.target)) if n.op == "call_module" else None)
        self.numbers.note(n, self.env)
        result = self._called_node(n) if n.op.startswith("call") else super().run_node(n)
        self._book(n, result)
        return result

    def _called_node(self, node: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        counted = len(self.state.work)
        try:
            if node.op == "call_module":
                plain = None if kwargs else plain_module(self._module(str(node.target)), args, self._meta)
            else:
                plain = plain_function(node.target, args, kwargs)
            if isinstance(plain, Plain):
                for step in (*plain.before, plain):
                    self.meet(step.op, step.args, {}, step.result)
                return plain.result
            if plain is not None:
                return plain
            if node.op != "call_module" and computes_no_tensor(node.target, args):
                return getattr(self, node.op)(node.target, args, kwargs)
            with META, self._watch:
                return getattr(self, node.op)(node.target, args, kwargs)
        except NO_META:
            # The real run counts what was counted before it broke off, too.
            del self.state.work[counted:]
            return self._looked_up(node)

    def _module(self, path: str) -> nn.Module:
        return self._called[path]

    def _meta(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else self._metas[id(tensor)]

    @override
    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs of a node; a device that it names is the one of this run."""
        if not n.kwargs and all(type(a) is fx.Node for a in n.args):  # as of most nodes
            return tuple(map(self.env.__getitem__, n.args)), {}  # type: ignore[arg-type]
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        moved = {k: META if k == "device" and v is not None else v for k, v in kwargs.items()}
        return tuple(META if isinstance(a, torch.device) else a for a in args), moved

    @override
    def fetch_attr(self, target: str) -> Any:
        if target not in self._modules:
            found = super().fetch_attr(target)
            if not isinstance(found, nn.Module):
                return self._metas.get(id(found), found) if isinstance(found, Tensor) else found
            self._modules[target] = self._on_meta(found)
        return self._modules[target]

    def _on_meta(self, module: nn.Module) -> nn.Module:
        """A copy of a called module on the meta parameters."""
        if next(module.children(), None) is not None or isinstance(module, nn.RNNBase):
            return copy.deepcopy(module, dict(self._metas))
        new = copy.copy(module)
        for kind in ("_parameters", "_buffers"):
            own: dict[str, Tensor | None] = getattr(module, kind)
            setattr(new, kind, {n: None if t is None else self._metas[id(t)] for n, t in own.items()})
        return new

    @override
    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, nn.RNNBase) and isinstance(args[0], Tensor) and is_resizable(module):
            return self._recurrent(module, args, kwargs)
        if is_kept_whole(module):
            raise NotImplementedError(f"{type(module).__name__} is kept whole")
        return super().call_module(target, args, kwargs)

    def _recurrent(self, module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, source = args[0], self._current(args[0])
        steps = given.numel() // given.shape[-1] // self._batch
        units = recurrent(self.state, module, source, lambda name: self.labels(getattr(module, name)), steps)
        ends = tuple(given.new_empty(shape) for shape in end_shapes(module, tuple(given.shape)))
        for tensor, ids in zip(ends, units, strict=False):
            self._remember(tensor, self.state.labelled(tensor.shape, {tensor.dim() - 1: ids}))
        for start in _tensors([*args[1:], *kwargs.values()]):
            self.state.freeze_all(self.labels(start))
            for ids in units[1:]:
                self.state.freeze(ids)
        return (ends[0], ends[1:]) if len(ends) > 2 else ends

    def _looked_up(self, node: fx.Node) -> Any:
        """What a node gives that cannot run on meta tensors, from a real run; its inputs freeze."""
        given = pytree.tree_leaves([self.env.get(n) for n in node.all_input_nodes])
        self.state.op = target_name(node)
        for leaf in given:
            if isinstance(leaf, Tensor):
                self.state.freeze_all(self.labels(leaf))
        self.state.unknown.setdefault(self.state.op, []).append(node.name)
        recorded = real_run(self._program)
        if macs := recorded.macs[node.name]:
            self.state.work.append(Work(node.name, KEPT_WHOLE, macs, ()))
        for op in recorded.unknown[node.name]:
            self.unknown_macs.setdefault(op, {})[node.name] = None
        return recorded.values[node.name]

    def _book(self, node: fx.Node, result: object) -> None:
        leaves = list(_tensors(result))
        self.state.op = "shape used as a number"
        if leaves:
            if not is_sized(node):
                self._freeze_sizes(node)
            self._freeze_parts(node)
            self.numbers.forget(node)
        if isinstance(result, Tensor) and result.dtype == torch.bool:
            self.masks.add(node.name)
        if node.op == "output":
            self.state.op = "the model's output"
            for leaf in leaves:
                self.state.freeze_all(self.labels(leaf))
        if isinstance(result, Tensor):
            self.values[node.name] = self.labels(result)
        else:
            self.values[node.name] = pytree.tree_map_only(Tensor, self.labels, result) if leaves else result

    def _freeze_sizes(self, node: fx.Node) -> None:
        for tensor, dims in self.numbers.behind(node):
            labels = self.labels(self.env[tensor])
            for dim in dims:
                self.state.freeze(self.state.vector(labels, dim))

    def _freeze_parts(self, node: fx.Node) -> None:
        """A part whose bounds follow the inputs' sizes may be any other at another size: nothing of it is unused."""
        source = self.env.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if not isinstance(source, Tensor):
            return
        for dim, bounds in computed_slices(node, source.dim()):
            if not any(isinstance(self.env.get(bound), Tensor) for bound in bounds) and self._follow_inputs(bounds):
                self.state.op = "a slice that follows the sizes of the inputs"
                self.state.freeze(self.state.vector(self.labels(source), dim))

    def _follow_inputs(self, numbers: Sequence[fx.Node]) -> bool:
        """Whether numbers come from a dim without labels, whose size is the inputs' to say."""
        sources = self.numbers.of(numbers)
        labelled = all(
            any(dim in varying(plane) for plane in self.labels(self.env[tensor]).planes)
            for tensor, dims in sources
            for dim in dims
        )
        return not sources or not labelled

    def labels(self, tensor: Tensor) -> Labels:
        """What is known of a tensor; one that was not met before carries no label."""
        if (known := self._labels.get(id(tensor))) is None:
            known = self._remember(tensor, Labels(tuple(tensor.shape)))
        return known

    def _remember(self, tensor: Tensor, labels: Labels) -> Labels:
        self._labels[id(tensor)] = labels
        self._alive.append(tensor)
        return labels

    def _label_tensors(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Fresh atoms for each dim of each parameter and buffer; none inside what cannot be resized."""
        opaque, kernels = list[str](), set[str]()
        for path, module in self._called.items():
            if not is_resizable(module):
                opaque.append(f"{path}.")
            elif isinstance(module, _ConvNd):
                kernels.add(f"{path}.weight")
        whole = tuple(opaque)
        fresh, start = self.state.atoms.fresh(sum(sum(tensor.shape) for _, tensor in named)), 0
        for name, tensor in named:
            shape = tuple(tensor.shape)
            labels = Labels(shape)
            if not name.startswith(whole):
                # The places of a kernel are no channels: nothing is removed along them.
                own = shape[:2] if name in kernels else shape
                ids = self.dims[name] = {}
                for d, n in enumerate(own):
                    if n > 1:
                        ids[d], start = fresh[start : start + n], start + n
                labels.planes = [along(vector, d, len(shape)) for d, vector in ids.items()]
            self._remember(self._metas[id(tensor)], labels)

    def meet(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        """Take one ATen operation in."""
        results = (result,) if isinstance(result, Tensor) else tuple(_tensors(result))
        if not results:
            return
        if base_name(op) == "as_strided" and _is_reshape(args[0], results[0]):
            op, args = ATEN.view.default, (args[0], list(results[0].shape))
        call = Call(op, self._given(args), {k: self._given(v) for k, v in kwargs.items()}, results)
        self.state.op, self.state.work_dims = call.name, ()
        for tensor, labels in zip(results, self._outcome(call), strict=True):
            self._remember(tensor, labels)
        self._count(call, args, kwargs, result)

    def _given(self, value: Any) -> Any:
        """Arguments with labels for tensors; ATen nests no deeper than lists."""
        if isinstance(value, Tensor):
            return self._current(value)
        if isinstance(value, (list, tuple)) and not all(type(v) is int for v in value):
            return type(value)(map(self._given, value))
        return value

    def _current(self, tensor: Tensor) -> Labels:
        labels = self.labels(tensor)
        self.state.refresh(labels)
        return Labels(labels.shape, list(labels.planes), labels.version)

    def _outcome(self, call: Call) -> Sequence[Labels]:
        rule = registry.rule_of(call.op)
        if rule is not None and not self._hides_a_shape(call):
            return self._keep_constants(call, rule(self.state, call))
        labelled = [t for t in call.tensors() if t.planes]
        if labelled and rule is None:
            self.state.unknown.setdefault(call.name, []).append(self.state.node)
        for labels in labelled:
            self.state.freeze_all(labels)
        return [Labels(tuple(r.shape)) for r in call.results]

    def _keep_constants(self, call: Call, results: Sequence[Labels]) -> Sequence[Labels]:
        """Freeze what a norm or grouped conv is told the size of where no rewrite reaches that number."""
        if not self._hidden:
            return results
        sizes = None if (declared := registry.of_aten(call.op)) is None else declared.sizes
        if sizes is None:
            return results
        grouped = sizes.rule is SizeRule.GROUPS and self.state.node in self.state.group_width
        if grouped or sizes.rule is SizeRule.NORMALIZED:
            for labels in results:
                self.state.freeze_all(labels)
        return results

    def _hides_a_shape(self, call: Call) -> bool:
        """Whether labelled data is reshaped by numbers that stand where no rewrite reaches them."""
        if not self._hidden:
            return False
        declared = registry.of_aten(call.op)
        return declared is not None and declared.states_sizes and any(t.planes for t in call.tensors())

    def _count(self, call: Call, args: Sequence[Any], kwargs: dict[str, Any], result: object) -> None:
        macs, is_fixed = macs_of(call.op, args, kwargs, result), self._note_fixed(args, call.results)
        if macs is not None:
            # What depends on no input is done once for the whole batch.
            share = macs if is_fixed else macs / self._batch
            self.state.work.append(Work(self.state.node, call.name, share, self.state.work_dims))
        elif (declared := registry.of_aten(call.op)) is None or declared.computes:
            self.uncounted[call.name] = None
            if has_unknown_macs(call.op):
                self.unknown_macs.setdefault(call.name, {})[self.state.node] = None

    def _note_fixed(self, args: Sequence[Any], results: Sequence[Tensor]) -> bool:
        """Return whether an operation works on parameters alone; its result counts as one, too."""
        if self.state.node in self._moving and not self._in_module:
            return False
        lists = (a if isinstance(a, (list, tuple)) else (a,) for a in args)
        given = [id(a) for members in lists for a in members if isinstance(a, Tensor)]
        is_fixed = self._fixed.issuperset(given) and bool(given or not self._in_module)
        if is_fixed:
            self._fixed.update(map(id, results))
        return is_fixed


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
        result = run_on_meta(func, args, kwargs or {})
        self._walk.meet(func, args, kwargs or {}, result)
        return result


def _is_reshape(source: Tensor, result: Tensor) -> bool:
    """Whether a strided view shows all entries of its source in their order.

    Written in place, as pooling to one place does to keep channels last, it must show rows in their order.
    """
    if source is result:
        return bool(result.dim() > 1 and result.numel() == len(result) * result.stride(0) and result.stride(1) == 1)
    whole = source.numel() == result.numel() and source.storage_offset() == result.storage_offset()
    return bool(whole and source.is_contiguous() and result.is_contiguous())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a value, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                yield leaf


def _called(root: fx.GraphModule) -> dict[str, nn.Module]:
    paths = dict.fromkeys(str(n.target) for n in root.graph.nodes if n.op == "call_module")
    return {path: root.get_submodule(path) for path in paths}


def _reached_by_inputs(program: Program) -> set[str]:
    """Nodes that depend on an input, if only on its size."""
    reached = set[str]()
    for node in program.nodes:
        if node.op == "placeholder" or any(n.name in reached for n in node.all_input_nodes):
            reached.add(node.name)
    return reached
