"""Front end 2, as a whole: record, align, keep whole what offends, and build the graph module."""

import keyword
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxsurgery.capture.alignment import Alignment
from fxsurgery.capture.build import build, input_names, left_over
from fxsurgery.capture.diagnostics import offended, untraceable, user_line
from fxsurgery.capture.function_mode import record
from fxsurgery.capture.functions import Function, innermost, name_of
from fxsurgery.capture.input_variants import redrawn
from fxsurgery.capture.model_copies import ModelCopies
from fxsurgery.capture.norms import lift, make_plain
from fxsurgery.capture.outputs import CONSTANTS
from fxsurgery.capture.trace import OffenceError, Recording
from fxsurgery.capture.tracer import is_leaf
from fxsurgery.errors import CaptureError
from fxsurgery.inputs import Inputs

ATTEMPTS = 40
"""How many modules and functions may be found that have to be kept whole."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A graph module, and what a user should know of it."""

    graph_module: fx.GraphModule
    entered: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Search:
    """The modules and functions that turned out to have to stay whole, with the reason."""

    copies: ModelCopies
    model: nn.Module
    leaf_modules: tuple[type[nn.Module], ...]
    trace_sizes: bool
    kept: dict[str, str] = field(default_factory=dict)
    functions: dict[Function, str] = field(default_factory=dict)

    def is_leaf(self, module: nn.Module, path: str) -> bool:
        return path in self.kept or is_leaf(module, self.leaf_modules)

    def keep(self, error: OffenceError) -> bool:
        """Keep the offending module whole, or the one around it; rather than the model itself, a function in it.

        `False` when there is neither.
        """
        path = error.path
        while path and (path in self.kept or self.is_leaf(self.model.get_submodule(path), path)):
            path = path.rpartition(".")[0]
        while path and not _is_called(self.model.get_submodule(path)):
            path = path.rpartition(".")[0]
        where = user_line(error)
        reason = f"{error}{where and f', {where}'}"
        if path:
            self.kept[path] = reason
            return True
        function = next((f for f in innermost(error.__traceback__) if f not in self.functions), None)
        if function is not None:
            self.functions[function] = reason
        return function is not None

    def notes(self, graph: fx.Graph) -> tuple[str, ...]:
        """What is kept whole, of the functions those that `graph` calls, and why."""
        called = {n.target for n in graph.nodes if n.op == "call_function"}
        functions = [f for f in self.functions if f in called]
        outer = [p for p in self.kept if not any(p.startswith(f"{o}.") for o in self.kept)]
        kinds = {p: type(self.model.get_submodule(p)).__name__ for p in outer}
        modules = [f"`{p}` ({kinds[p]}) is kept whole: {self.kept[p]}" for p in outer]
        return (*modules, *(f"the function `{name_of(f)}` is kept whole: {self.functions[f]}" for f in functions))


def recorded(
    copies: ModelCopies,
    model: nn.Module,
    inputs: Inputs,
    leaf_modules: tuple[type[nn.Module], ...],
    reached: tuple[str, ...] = (),
    *,
    trace_sizes: bool = True,
) -> Recorded:
    """Record a copy of `model`.

    Args:
        copies: gives the copy.
        model: stays as it is.
        inputs: what it runs on.
        leaf_modules: types that are kept whole.
        reached: modules and parameters that are known to be used in train mode.
        trace_sizes: whether sizes stay symbolic, with guards where Python needs their values; else they are those
            of the example inputs.

    Raises:
        CaptureError: something in the model's own forward cannot be held by a graph; it says what and where.
    """
    search = _Search(copies, copies.take(model), leaf_modules, trace_sizes)
    own = set(model.state_dict())
    for _ in range(ATTEMPTS):
        try:
            return _attempt(search, inputs, own, reached)
        except OffenceError as error:
            if not search.keep(error):
                raise offended(error, model) from error
    raise offended(OffenceError("", f"more than {ATTEMPTS} modules of it would have to be kept whole"), model)


def _attempt(search: _Search, inputs: Inputs, own: set[str], reached: tuple[str, ...]) -> Recorded:
    model, notes = search.model, list[str]()
    model.train().eval()
    first, batch = _first(search, inputs)
    sized = inputs.resized(batch) if batch else inputs
    larger = _tried(search, sized.grown()) if batch and sized.is_resizable else None
    if larger is None:
        notes.append("captured for this number of inputs only: the model takes no other batch size")
    trained, other = _tried(search, sized, training=True), _tried(search, redrawn(sized))
    lifted = lift(first.graph, model)
    for recording in (larger, trained, other):
        if recording is not None:
            lift(recording.graph, model)
    Alignment(first, larger or first, trained or first, other or first, batch or 1, _batched(inputs)).align()
    _follow_device(first, inputs)
    graph, codegen = _finished(model, first, inputs)
    make_plain(graph, model, lifted)
    for name, constant in first.constants.items():
        model.register_buffer(name, constant.detach().clone(), persistent=False)
    graph_module = build(model, graph, own)
    if codegen is not None:
        graph_module.graph.set_codegen(codegen)
        graph_module.recompile()
    seen = () if trained is None else trained.graph.nodes
    reached = (*reached, *(str(n.target) for n in seen if n.op in {"call_module", "get_attr"}))
    notes += [*search.notes(first.graph), *first.notes, *left_over(graph_module, model, reached)]
    return Recorded(graph_module, first.entered, tuple(notes))


def _batched(inputs: Inputs) -> tuple[int, int]:
    """The place of the first input with a batch dim among the leaves, and that dim."""
    dims = ((i, inputs.batch_dim(x)) for i, x in enumerate(inputs.leaves) if isinstance(x, Tensor))
    return next(((i, dim) for i, dim in dims if dim is not None), (0, 0))


def _first(search: _Search, inputs: Inputs) -> tuple[Recording, int | None]:
    """In eval mode, at a batch size of two or more where the model takes it; and that size."""
    if inputs.batch == 1 and inputs.is_resizable and (found := _tried(search, inputs.resized(2))) is not None:
        return found, 2
    return _record(search, inputs), inputs.batch


def _record(search: _Search, inputs: Inputs, *, training: bool = False) -> Recording:
    # On a copy: what a forward keeps for the next one must not be there yet.
    model = search.copies.take(search.model).train().train(training)
    try:
        return record(model, inputs, search.is_leaf, search.functions, trace_sizes=search.trace_sizes)
    except OffenceError:
        raise
    except Exception as error:
        raise untraceable(error, search.model, "") from error


def _tried(search: _Search, inputs: Inputs, *, training: bool = False) -> Recording | None:
    """A recording; `None` where the model does not run on these inputs, or in this mode."""
    try:
        return _record(search, inputs, training=training)
    except CaptureError:
        return None


def _follow_device(recording: Recording, inputs: Inputs) -> None:
    """A device that forward took from its input stays the input's."""
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


def _finished(model: nn.Module, recording: Recording, inputs: Inputs) -> tuple[fx.Graph, _PyTreeCodeGen | None]:
    """The graph with its output, and how it is called where that is not by plain positional tensors."""
    graph = recording.graph
    ending = next(iter(reversed(graph.nodes)))
    spec = recording.structure
    output = pytree.tree_unflatten(list(ending.args[0]), spec)
    simple = not inputs.kwargs and all(isinstance(a, Tensor) for a in inputs.args) and _is_simple(output)
    if simple:
        ending.args = (output,)
    for node in reversed(list(graph.nodes)):
        reads = node.op == "get_attr" or node.target in {getattr, operator.getitem} or node.meta.get("size")
        if reads and not node.users:
            graph.erase_node(node)
    names = inputs.names(model.forward)
    if simple:
        for node, name in zip([n for n in graph.nodes if n.op == "placeholder"], names, strict=True):
            node.target = name
            node._rename(name)  # noqa: SLF001 -- so that the generated forward takes it by this name
        return graph, None
    fitting = input_names(graph, names)
    for name, own in zip(names, fitting, strict=True):
        if name in inputs.kwargs and (name != own or not name.isidentifier() or keyword.iskeyword(name)):
            raise CaptureError(
                f"forward takes an input by the name {name!r}, which the code of a graph cannot give it; rename it, or "
                "pass it by position"
            )
    in_spec = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))[1]
    return graph, _PyTreeCodeGen(_PyTreeInfo(fitting, in_spec, spec))


def _is_simple(output: Any) -> bool:
    if type(output) in {tuple, list}:
        return all(map(_is_simple, output))
    if type(output) is dict:
        return all(map(_is_simple, output.values()))
    return isinstance(output, (fx.Node, *CONSTANTS))


def _is_called(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))
