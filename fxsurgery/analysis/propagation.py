"""Run a program on meta tensors and apply the rules to every ATen operation.

The operations are intercepted by a `TorchDispatchMode`, so the rules only know ATen, while their findings are recorded
for the node of the user's graph that is being run. Values that cannot be computed on meta tensors (of a leaf module, an
operation without shapes) are looked up in one real run; their inputs freeze.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.analysis.aten_calls import AtenCalls, tensors_of
from fxsurgery.analysis.fast_shapes import computes_no_tensor, plain_function, plain_module
from fxsurgery.analysis.real_run import is_user_leaf, on_meta, real_run
from fxsurgery.analysis.refit import is_resizable
from fxsurgery.analysis.shapes import hides_its_shape, is_sized, target_name
from fxsurgery.analysis.size_expressions import SizeExpressions, computed_slices
from fxsurgery.ops.fast.meta_call import MetaCall
from fxsurgery.ops.labels import Labels, along, varying
from fxsurgery.ops.propagation_state import Attention, PropagationState, Work
from fxsurgery.ops.rules.recurrent import end_shapes, recurrent
from fxsurgery.ops.union_find import Ids, UnionFind
from fxsurgery.program import Program

LEAF = "leaf module"
"""Operation name for the work of a leaf module, which is counted in a real run."""

MODEL_OUTPUT = "the model's output"
SIZE_AS_NUMBER = "shape used as a number"
SLICE_BY_INPUT = "a slice that follows the sizes of the inputs"
"""Operation names for what freezes units without being an operation itself."""

META = torch.device("meta")

NO_META = (NotImplementedError, RuntimeError)
"""Exceptions of an operation that cannot run on meta tensors."""


class Propagation(fx.Interpreter):
    """One run of a program on meta tensors."""

    def __init__(self, program: Program, atoms: UnionFind | None = None, attention: Attention = "heads") -> None:
        super().__init__(program.graph_module, garbage_collect_values=False)
        named = [*program.graph_module.named_parameters(), *program.graph_module.named_buffers()]
        self._metas = {id(t): on_meta(t) for _, t in named}
        self._modules, self._called = dict[str, nn.Module](), _called(program.graph_module)
        self.state = PropagationState(atoms or UnionFind(), attention)
        self.values: dict[str, Any] = {}
        self.dims: dict[str, dict[int, Ids]] = {}
        self.numbers = SizeExpressions()
        self.masks = set[str]()
        self._program = program
        self._batch = program.examples.batch or 1
        fixed = set(map(id, self._metas.values()))
        self.calls = AtenCalls(self.state, fixed, _reached_by_inputs(program), self._batch)
        self._label_tensors(named)
        self._inputs = [on_meta(x) if isinstance(x, Tensor) else x for x in program.examples.leaves]

    def walk(self) -> None:
        """Run the program; `state` and `values` are complete afterwards."""
        with torch.no_grad():
            self.run(*self._inputs, enable_io_processing=False)
        self.state.run_later()
        self._make_product_grids()

    def _make_product_grids(self) -> None:
        """Tie units until every plane varies along one dim: then reshapes commute with the removal of units."""
        waiting = self.calls.known()
        while True:
            version = self.state.atoms.version
            for labels in self.state.stale(waiting):
                self.state.resolve(labels)
            if self.state.atoms.version == version:
                return

    @override
    def run_node(self, n: fx.Node) -> Any:
        self.state.node, self.state.op, self.calls.in_module = n.name, n.op, n.op == "call_module"
        self.calls.hidden = hides_its_shape(n, self._module(str(n.target)) if n.op == "call_module" else None)
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
            if isinstance(plain, MetaCall):
                for step in (*plain.before, plain):
                    self.calls.meet(step.op, step.args, {}, step.result)
                return plain.result
            if plain is not None:
                return plain
            if node.op != "call_module" and computes_no_tensor(node.target, args):
                return getattr(self, node.op)(node.target, args, kwargs)
            with META, self.calls:
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
        """Return the inputs of a node; a device among them is replaced by that of this run."""
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
        """Return a copy of a called module on the meta parameters."""
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
        if is_user_leaf(module):
            raise NotImplementedError(f"{type(module).__name__} is a leaf module")
        return super().call_module(target, args, kwargs)

    def _recurrent(self, module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, source = args[0], self.calls.current(args[0])
        steps = given.numel() // given.shape[-1] // self._batch
        units = recurrent(self.state, module, source, lambda name: self.calls.labels(getattr(module, name)), steps)
        ends = tuple(given.new_empty(shape) for shape in end_shapes(module, tuple(given.shape)))
        for tensor, ids in zip(ends, units, strict=False):
            self.calls.remember(tensor, self.state.labeled(tensor.shape, {tensor.dim() - 1: ids}))
        for start in tensors_of([*args[1:], *kwargs.values()]):
            self.state.freeze_all(self.calls.labels(start))
            for ids in units[1:]:
                self.state.freeze(ids)
        return (ends[0], ends[1:]) if len(ends) > 2 else ends

    def _looked_up(self, node: fx.Node) -> Any:
        """Return the value of a node that cannot run on meta tensors, from a real run, and freeze its inputs."""
        given = pytree.tree_leaves([self.env.get(n) for n in node.all_input_nodes])
        self.state.op = target_name(node)
        for leaf in given:
            if isinstance(leaf, Tensor):
                self.state.freeze_all(self.calls.labels(leaf))
        self.state.unknown.setdefault(self.state.op, []).append(node.name)
        recorded = real_run(self._program)
        if macs := recorded.macs[node.name]:
            self.state.work.append(Work(node.name, LEAF, macs, ()))
        for op in recorded.unknown[node.name]:
            self.calls.unknown_macs.setdefault(op, {})[node.name] = None
        return recorded.values[node.name]

    def _book(self, node: fx.Node, result: object) -> None:
        leaves = list(tensors_of(result))
        self.state.op = SIZE_AS_NUMBER
        if leaves:
            if not is_sized(node):
                self._freeze_sizes(node)
            self._freeze_parts(node)
            self.numbers.forget(node)
        if isinstance(result, Tensor) and result.dtype == torch.bool:
            self.masks.add(node.name)
        if node.op == "output":
            self.state.op = MODEL_OUTPUT
            for leaf in leaves:
                self.state.freeze_all(self.calls.labels(leaf))
        if isinstance(result, Tensor):
            self.values[node.name] = self.calls.labels(result)
        else:
            self.values[node.name] = pytree.tree_map_only(Tensor, self.calls.labels, result) if leaves else result

    def _freeze_sizes(self, node: fx.Node) -> None:
        for tensor, dims in self.numbers.behind(node):
            labels = self.calls.labels(self.env[tensor])
            for dim in dims:
                self.state.freeze(self.state.vector(labels, dim))

    def _freeze_parts(self, node: fx.Node) -> None:
        """Freeze dims that are sliced at bounds that follow the input sizes: at another size the slice differs."""
        source = self.env.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if not isinstance(source, Tensor):
            return
        for dim, bounds in computed_slices(node, source.dim()):
            if not any(isinstance(self.env.get(bound), Tensor) for bound in bounds) and self._follow_inputs(bounds):
                self.state.op = SLICE_BY_INPUT
                self.state.freeze(self.state.vector(self.calls.labels(source), dim))

    def _follow_inputs(self, numbers: Sequence[fx.Node]) -> bool:
        """Return True if numbers come from a dim without labels, whose size depends on the inputs."""
        sources = self.numbers.of(numbers)
        labeled = all(
            any(dim in varying(plane) for plane in self.calls.labels(self.env[tensor]).planes)
            for tensor, dims in sources
            for dim in dims
        )
        return not sources or not labeled

    def _label_tensors(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Assign fresh labels to each dim of each parameter and buffer, except in modules that cannot be resized."""
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
            self.calls.remember(self._metas[id(tensor)], labels)


def _called(root: fx.GraphModule) -> dict[str, nn.Module]:
    paths = dict.fromkeys(str(n.target) for n in root.graph.nodes if n.op == "call_module")
    return {path: root.get_submodule(path) for path in paths}


def _reached_by_inputs(program: Program) -> set[str]:
    """Return the nodes that depend on an input, or at least on its size."""
    reached = set[str]()
    for node in program.nodes:
        if node.op == "placeholder" or any(n.name in reached for n in node.all_input_nodes):
            reached.add(node.name)
    return reached
