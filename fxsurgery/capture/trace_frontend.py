"""Front end 2: record, align, keep unsupported code as leaves, and build the graph module."""

import keyword
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxsurgery.capture.alignment import Alignment
from fxsurgery.capture.build import build, input_names, unused_tensor_notes
from fxsurgery.capture.constant_inputs import check_constants
from fxsurgery.capture.diagnostics import unsupported_code, untraceable, user_line
from fxsurgery.capture.function_mode import record
from fxsurgery.capture.functions import Function, innermost_functions, name_of
from fxsurgery.capture.input_variants import redrawn
from fxsurgery.capture.model_copies import ModelCopies
from fxsurgery.capture.norms import lift_batch_norms, restore_plain_norms
from fxsurgery.capture.outputs import CONSTANT_TYPES
from fxsurgery.capture.size_variants import leaf_names
from fxsurgery.capture.trace import Recording, UnsupportedCodeError
from fxsurgery.capture.tracer import is_leaf
from fxsurgery.errors import CaptureError
from fxsurgery.inputs import Inputs

MAX_LEAVES = 40
"""Maximum number of modules and functions that may have to be kept as leaves."""


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A captured graph module, with notes for the user."""

    graph_module: fx.GraphModule
    entered: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Search:
    """Search for the modules and functions to keep as leaves, each with the reason."""

    copies: ModelCopies
    model: nn.Module
    leaf_modules: tuple[type[nn.Module], ...]
    trace_sizes: bool
    leaves: dict[str, str] = field(default_factory=dict)
    functions: dict[Function, str] = field(default_factory=dict)

    def is_leaf(self, module: nn.Module, path: str) -> bool:
        return path in self.leaves or is_leaf(module, self.leaf_modules)

    def add_leaf(self, error: UnsupportedCodeError) -> bool:
        """Mark the module with unsupported code as a leaf, or the one around it, or a function instead of the model.

        Returns:
            False if there is none that could be a leaf.
        """
        path = error.path
        while path and (path in self.leaves or self.is_leaf(self.model.get_submodule(path), path)):
            path = path.rpartition(".")[0]
        while path and not _is_called(self.model.get_submodule(path)):
            path = path.rpartition(".")[0]
        where = user_line(error)
        reason = f"{error}{where and f', {where}'}"
        if path:
            self.leaves[path] = reason
            return True
        function = next((f for f in innermost_functions(error.__traceback__) if f not in self.functions), None)
        if function is not None:
            self.functions[function] = reason
        return function is not None

    def notes(self, graph: fx.Graph) -> tuple[str, ...]:
        """Return one note per leaf module, and per leaf function that `graph` calls, with the reason."""
        called = {n.target for n in graph.nodes if n.op == "call_function"}
        functions = [f for f in self.functions if f in called]
        outer = [p for p in self.leaves if not any(p.startswith(f"{o}.") for o in self.leaves)]
        kinds = {p: type(self.model.get_submodule(p)).__name__ for p in outer}
        modules = [f"`{p}` ({kinds[p]}) is kept as a leaf: {self.leaves[p]}" for p in outer]
        functions_text = [f"the function `{name_of(f)}` is kept as a leaf: {self.functions[f]}" for f in functions]
        return (*modules, *functions_text)


def record_graph(
    copies: ModelCopies,
    model: nn.Module,
    inputs: Inputs,
    leaf_modules: tuple[type[nn.Module], ...],
    reached: tuple[str, ...] = (),
    *,
    trace_sizes: bool = True,
) -> CapturedGraph:
    """Record a copy of `model`.

    Args:
        copies: provides the copy.
        model: the private model, left unchanged.
        inputs: the inputs to run it on.
        leaf_modules: module types to keep as leaves.
        reached: paths of modules and parameters that are known to be used in train mode.
        trace_sizes: whether sizes stay symbolic, with guards where Python needs their values; otherwise they are those
            of the example inputs.

    Raises:
        CaptureError: the model's own forward contains unsupported code; the message says what and where.
    """
    search = _Search(copies, copies.take(model), leaf_modules, trace_sizes)
    own = set(model.state_dict())
    for _ in range(MAX_LEAVES):
        try:
            return _attempt(search, inputs, own, reached)
        except UnsupportedCodeError as error:
            if not search.add_leaf(error):
                raise unsupported_code(error, model) from error
    raise unsupported_code(
        UnsupportedCodeError("", f"more than {MAX_LEAVES} of its modules would have to be kept as leaves"), model
    )


def _attempt(search: _Search, inputs: Inputs, own: set[str], reached: tuple[str, ...]) -> CapturedGraph:
    model, notes = search.model, list[str]()
    model.train().eval()
    first, batch = _first(search, inputs)
    sized = inputs.resized(batch) if batch else inputs
    larger = _try_record(search, sized.grown()) if batch and sized.is_resizable else None
    if larger is None:
        notes.append("captured for this batch size only: the model accepts no other")
    trained, other = _try_record(search, sized, training=True), _try_record(search, redrawn(sized))
    lifted = lift_batch_norms(first.graph, model)
    for recording in (larger, trained, other):
        if recording is not None:
            lift_batch_norms(recording.graph, model)
    Alignment(first, larger or first, trained or first, other or first, batch or 1, _batched(inputs)).align()
    _follow_device(first, inputs)
    graph, codegen = _finish(model, first, inputs)
    notes += check_constants(graph, inputs, leaf_names(model, inputs))
    restore_plain_norms(graph, model, lifted)
    for name, constant in first.constants.items():
        model.register_buffer(name, constant.detach().clone(), persistent=False)
    graph_module = build(model, graph, own)
    if codegen is not None:
        graph_module.graph.set_codegen(codegen)
        graph_module.recompile()
    train_nodes = () if trained is None else trained.graph.nodes
    reached = (*reached, *(str(n.target) for n in train_nodes if n.op in {"call_module", "get_attr"}))
    notes += [*search.notes(first.graph), *first.notes, *unused_tensor_notes(graph_module, model, reached)]
    return CapturedGraph(graph_module, first.entered, tuple(notes))


def _batched(inputs: Inputs) -> tuple[int, int]:
    """Return the position of the first input leaf with a batch dim, and that dim."""
    dims = ((i, inputs.batch_dim(x)) for i, x in enumerate(inputs.leaves) if isinstance(x, Tensor))
    return next(((i, dim) for i, dim in dims if dim is not None), (0, 0))


def _first(search: _Search, inputs: Inputs) -> tuple[Recording, int | None]:
    """Return the eval-mode recording, at a batch size of at least 2 if the model accepts it, and that batch size."""
    if inputs.batch == 1 and inputs.is_resizable and (found := _try_record(search, inputs.resized(2))) is not None:
        return found, 2
    return _record(search, inputs), inputs.batch


def _record(search: _Search, inputs: Inputs, *, training: bool = False) -> Recording:
    # On a copy: state that forward keeps for its next call must not exist yet.
    model = search.copies.take(search.model).train().train(training)
    try:
        return record(model, inputs, search.is_leaf, search.functions, trace_sizes=search.trace_sizes)
    except UnsupportedCodeError:
        raise
    except Exception as error:
        raise untraceable(error, search.model, "") from error


def _try_record(search: _Search, inputs: Inputs, *, training: bool = False) -> Recording | None:
    """Return a recording; None if the model does not run on these inputs or in this mode."""
    try:
        return _record(search, inputs, training=training)
    except CaptureError:
        return None


def _follow_device(recording: Recording, inputs: Inputs) -> None:
    """Replace devices that forward read from its input by the device of the input."""
    graph, devices = recording.graph, {x.device for x in inputs.tensors}
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    made = list[fx.Node]()

    def device(value: Any) -> Any:
        if not isinstance(value, torch.device) or value not in devices:
            return value
        if not made:
            tensors = [n for n, x in zip(placeholders, inputs.leaves, strict=True) if isinstance(x, Tensor)]
            with graph.inserting_after(placeholders[-1]):
                made.append(graph.call_function(getattr, (tensors[0], "device")))
        return made[0]

    for node in list(graph.nodes):
        if node.op in {"call_function", "call_method"}:
            node.args = tuple(device(a) for a in node.args)
            node.kwargs = {k: device(v) for k, v in node.kwargs.items()}


def _finish(model: nn.Module, recording: Recording, inputs: Inputs) -> tuple[fx.Graph, _PyTreeCodeGen | None]:
    """Return the graph with its output, and the code generator for inputs other than plain positional tensors."""
    graph = recording.graph
    output_node = next(iter(reversed(graph.nodes)))
    spec = recording.structure
    output = pytree.tree_unflatten(list(output_node.args[0]), spec)
    simple = not inputs.kwargs and all(isinstance(a, Tensor) for a in inputs.args) and _is_simple(output)
    if simple:
        output_node.args = (output,)
    for node in reversed(list(graph.nodes)):
        reads = node.op == "get_attr" or node.target in {getattr, operator.getitem} or node.meta.get("size")
        if reads and not node.users:
            graph.erase_node(node)
    names = inputs.names(model.forward)
    if simple:
        for node, name in zip([n for n in graph.nodes if n.op == "placeholder"], names, strict=True):
            node.target = name
            node._rename(name)  # noqa: SLF001 -- so that the generated forward has a parameter of this name
        return graph, None
    valid_names = input_names(graph, names)
    for name, own in zip(names, valid_names, strict=True):
        if name in inputs.kwargs and (name != own or not name.isidentifier() or keyword.iskeyword(name)):
            raise CaptureError(
                f"forward takes the keyword input {name!r}, which generated code cannot use as a name; rename it, or "
                "pass it by position"
            )
    in_spec = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))[1]
    return graph, _PyTreeCodeGen(_PyTreeInfo(valid_names, in_spec, spec))


def _is_simple(output: Any) -> bool:
    if type(output) in {tuple, list}:
        return all(map(_is_simple, output))
    if type(output) is dict:
        return all(map(_is_simple, output.values()))
    return isinstance(output, (fx.Node, *CONSTANT_TYPES))


def _is_called(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))
