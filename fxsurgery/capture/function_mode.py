"""Front end 2: run the model on real tensors and record every torch call.

A `TorchFunctionMode` sees each call of a torch function or method; calls of leaf modules are intercepted in
`nn.Module.__call__`. Python runs normally, so branches, loops and numbers are those of this run: two runs
at different batch sizes and one in train mode are aligned afterwards (`fxsurgery.capture.alignment`). Code that
a graph cannot represent (a value read from a tensor, an `autograd.Function`, a region that changes gradients)
raises an `UnsupportedCodeError` that names the module it ran in, which can then be kept as a leaf.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.capture import reference_runs
from fxsurgery.capture.attention import as_operations, is_batched
from fxsurgery.capture.canonical_ops import canonical_target, is_reflected
from fxsurgery.capture.diagnostics import running_line
from fxsurgery.capture.draws import OUT_OF_LEAF, REMEDY, draw_message, has_python_values, python_draws
from fxsurgery.capture.functions import Function, patches_for
from fxsurgery.capture.interception import intercepting
from fxsurgery.capture.module_mode import IsLeaf, ModuleMode
from fxsurgery.capture.outputs import plain_structure, unknown_types
from fxsurgery.capture.size_tape import SizeTape, size_method
from fxsurgery.capture.trace import DETACH, NO_AUTOCAST, NO_LOOP, REWRITE, Recording, UnsupportedCodeError
from fxsurgery.capture.traced_sizes import untraced
from fxsurgery.capture.unsupported_ops import iterates, sized_by_values, unrepeatable
from fxsurgery.capture.value_table import ValueTable, state_of
from fxsurgery.inputs import Inputs


def record(
    model: nn.Module,
    inputs: Inputs,
    is_leaf: IsLeaf,
    leaf_functions: Iterable[Function] = (),
    *,
    trace_sizes: bool = True,
) -> Recording:
    """Run `model`, a private copy in the mode to record, and record what it does.

    Args:
        model: the copy.
        inputs: the inputs to run it on.
        is_leaf: whether to keep a module, given with its path, as a leaf.
        leaf_functions: functions to keep as leaves.
        trace_sizes: whether tensor sizes stay symbolic in the graph; otherwise they are those of this run.

    Returns:
        The recording; its graph returns the flat list of outputs.

    Raises:
        UnsupportedCodeError: the model does something that a graph cannot represent.
    """
    recorder = _Recorder(model, is_leaf, trace_sizes=trace_sizes)
    inputs = inputs.clone()
    for position, leaf in enumerate(inputs.leaves):
        recorder.values.bind(leaf, recorder.graph.placeholder(f"input_{position}"))
    patches = [patch for function in leaf_functions for patch in patches_for(function, recorder.call_function)]
    try:
        with (
            intercepting(recorder.call, recorder.refuse_function, patches),
            python_draws(model, recorder.refuse_draw),
            recorder,
        ):
            returned = model(*inputs.args, **inputs.kwargs)
        recorder.refuse_caught_draw()
        recorder.refuse_assigned_state()
        leaves, spec = pytree.tree_flatten(plain_structure(returned, recorder.unsupported))
        recorder.graph.output([recorder.values.node_for(leaf) for leaf in leaves])
    finally:
        recorder.close()
    entered = tuple(dict.fromkeys(recorder.entered))
    return Recording(recorder.graph, spec, recorder.values.constants, entered, _notes(model, recorder, returned))


def _notes(model: nn.Module, recorder: "_Recorder", returned: Any) -> tuple[str, ...]:
    modules = {path: model.get_submodule(path) for path in dict.fromkeys(recorder.entered)}
    hooked = [path for path, m in modules.items() if m._forward_hooks or m._forward_pre_hooks]  # noqa: SLF001
    notes = [f"the output's {kind} becomes a dict: pytree does not know this type" for kind in unknown_types(returned)]
    if hooked:
        named = ", ".join(f"`{path}`" for path in hooked[:3]) + (f" and {len(hooked) - 3} more" if hooked[3:] else "")
        notes.append(f"the forward hooks of {named} ran during capture: their operations are part of the graph")
    if recorder.dynamic:
        notes.append(
            f"a size depends on the values of the inputs, so the graph may fail on other values: {recorder.dynamic[0]}"
        )
    return tuple(notes)


class _Recorder(ModuleMode):
    """Records one run."""

    def __init__(self, model: nn.Module, is_leaf: IsLeaf, *, trace_sizes: bool) -> None:
        super().__init__(model, is_leaf)
        self.graph = fx.Graph()
        self._tape = SizeTape(self.graph, self._annotate) if trace_sizes else None
        self.values = ValueTable(self.graph, model, self._annotate, lambda: self._inside[-1], self._tape)
        self.entered: list[str] = [""]
        self.dynamic = list[str]()
        """Lines of the model's own forward that give a tensor whose size depends on the values of the inputs."""
        self._gradients = torch.is_grad_enabled()
        self._called_leaves = set[str]()
        self._drew, self._draw_errors = False, list[UnsupportedCodeError]()

    def close(self) -> None:
        """End the recording; numbers that the user's code has kept behave as plain ones from then on."""
        if self._tape is not None:
            self._tape.close()

    def unsupported(self, what: str, remedy: str = REWRITE) -> UnsupportedCodeError:
        """Return the error for code that a graph cannot represent, located at the running module."""
        return UnsupportedCodeError(self._inside[-1], what, remedy)

    def refuse_function(self, name: str) -> None:
        """Raise for an autograd function, unless it runs inside a leaf."""
        if self.suspended:
            return
        if name == "BackwardHookFunction":
            raise self.unsupported("backward hooks are registered, which would be lost", "Remove them before capture")
        raise self.unsupported(f"the torch.autograd.Function {name} is called, whose backward would be lost")

    def refuse_draw(self, source: str, line: str) -> None:
        """Raise for a random number that reaches Python, unless it stays inside a leaf."""
        self._drew = True
        if not self.suspended:
            self._draw_errors.append(UnsupportedCodeError(self._inside[-1], draw_message(source), REMEDY, line))
            raise self._draw_errors[0]

    def refuse_caught_draw(self) -> None:
        """Raise again for a random draw if the user's code caught the error."""
        if self._draw_errors:
            raise self._draw_errors[0]

    def refuse_assigned_state(self) -> None:
        """Raise if the run replaced a buffer or parameter with another tensor."""
        for name, tensor in state_of(self._model):
            path, _, own = name.rpartition(".")
            in_leaf = any(f"{path}.".startswith(f"{leaf}.") for leaf in self._called_leaves)
            if not self.values.is_named(tensor) and not in_leaf:
                what = f"forward assigns the buffer `{own}`, which a graph cannot do"
                raise UnsupportedCodeError(path, what, f"Update it in place (self.{own}.copy_(...))")

    @override
    def on_function(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in {"_set_grad_enabled", "set_grad_enabled"}:
            return func(*args, **kwargs)
        if reason := unrepeatable(func, name, args):
            raise self.unsupported(*reason)
        before = None if name in {"__get__", "__set__"} else (self.values.node_for(args), self.values.node_for(kwargs))
        dynamic = self._has_dynamic_size(name, args, kwargs, before)
        arguments, args, kwargs = (args, kwargs), untraced(args), untraced(kwargs)
        self.suspended += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self.suspended -= 1
        if before is None:
            return self._on_attribute(func, args[0], out)
        if size_method(name) is not None and isinstance(args[0], Tensor):
            return self._traced_sizes(name, args[0], (*args[1:], *kwargs.values()), out)
        if name != "__setitem__" and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out)):
            return out
        self._check_surroundings((args, kwargs))
        node = self._create_node(func, name, before)
        node.meta["dynamic"] |= dynamic
        if name == "__setitem__":
            return out
        if self._tape is not None:
            self._tape.pin_count(name, *arguments, self.values.node_for)
        in_place = kwargs.get("inplace") or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        return self._bind(out, node, () if in_place else (args, kwargs))

    def _create_node(self, func: Any, name: str, arguments: tuple[Any, Any]) -> fx.Node:
        spelling = canonical_target(func, name)
        if spelling is None:
            raise self.unsupported(
                f"the function {name} of {getattr(func, '__module__', None)} cannot be referenced by name in a graph"
            )
        args, kwargs = arguments
        return self._annotate(self.graph.create_node(*spelling, args[::-1] if is_reflected(name) else args, kwargs))

    def _has_dynamic_size(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], arguments: Any) -> bool:
        """Return True if the size of a call's result depends on the values of the inputs; raise inside a submodule."""
        nodes = [n for n in pytree.tree_leaves(arguments) if isinstance(n, fx.Node)]
        if iterates(name, args, kwargs) and any(n.meta.get("dynamic") for n in nodes):
            raise self.unsupported(
                "Python iterates over a tensor whose length depends on the values of inputs", NO_LOOP
            )
        if not sized_by_values(name, args) or not any(n.meta.get("varies") for n in nodes):
            return False
        if self._inside[-1]:
            raise self.unsupported(f"the size of the result of {name} depends on the values of the inputs")
        self.dynamic.append(running_line())
        return True

    def _on_attribute(self, getter: Any, tensor: Tensor, out: Any) -> Any:
        """Handle an attribute read: `x.T` is recorded as a node, `x.shape` as sizes, anything else is a plain value."""
        name = getter.__self__.__name__
        if isinstance(out, Tensor) and name != "grad":
            if name == "data":
                raise self.unsupported("Tensor.data is read, which detaches the tensor from autograd")
            read = self.graph.create_node("call_function", getattr, (self.values.node_for(tensor), name))
            return self._bind(out, self._annotate(read), tensor)
        return self._traced_sizes(name, tensor, (), out)

    def _traced_sizes(self, name: str, tensor: Tensor, dim: tuple[int, ...], out: Any) -> Any:
        """Return sizes read from `tensor` as traced numbers; `len()` must give Python a plain one."""
        method = size_method(name)
        if self._tape is None or method is None:
            return out
        node = self.values.node_for(tensor)
        if isinstance(out, tuple):
            return type(out)([self._tape.read(method, node, d, value=size) for d, size in enumerate(out)])
        if name == "__len__":
            return self._tape.pin(self._tape.read(method, node, 0, value=out))
        return self._tape.read(method, node, *dim, value=out)

    def _annotate(self, node: fx.Node) -> fx.Node:
        node.meta["inside"], node.meta["line"] = self._inside[-1], running_line()
        node.meta["dynamic"] = any(n.meta.get("dynamic") for n in node.all_input_nodes)
        node.meta["varies"] = any(n.op == "placeholder" or n.meta.get("varies") for n in node.all_input_nodes)
        return node

    def _check_surroundings(self, arguments: Any) -> None:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                raise self.unsupported("forward enters an autocast region, which would be lost", NO_AUTOCAST)
        if torch.is_grad_enabled() == self._gradients:
            return
        if any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves(arguments)):
            raise self.unsupported(
                "gradients are turned off or on, by torch.no_grad or by an autograd.Function", DETACH
            )

    @override
    def on_module(
        self, run: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call as one node if the module is a leaf, otherwise its operations."""
        if self._is_leaf(module, path):
            return self._call_leaf(run, path, args, kwargs)
        if isinstance(module, nn.MultiheadAttention) and is_batched(args, kwargs):
            return as_operations(module)(*args, **kwargs)
        self.entered.append(path)
        out = run(*args, **kwargs)
        self.values.remember_producer(out, path)
        return out

    def call_function(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the call of a leaf function as one node."""
        if self.suspended:
            return function(*args, **kwargs)

        def node(*arguments: Any) -> fx.Node:
            made = self.graph.call_function(function, *arguments)
            # Loading a graph module traces its code, which must not enter the function either.
            made.meta["is_wrapped"] = True
            return made

        return self._run_leaf(function, args, kwargs, node)

    def _call_leaf(self, run: Callable[..., Any], path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._called_leaves.add(path)
        self._check_surroundings(list(self._model.get_submodule(path).parameters()))
        return self._run_leaf(run, args, kwargs, lambda *arguments: self.graph.call_module(path, *arguments))

    def _run_leaf(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        node: Callable[[Any, Any], fx.Node],
    ) -> Any:
        before = self.values.node_for(args), self.values.node_for(kwargs)
        self._check_surroundings((args, kwargs))
        args, kwargs = untraced(args), untraced(kwargs)
        self.suspended += 1
        self._drew, drawn_from = False, reference_runs.torch_states()
        try:
            out = run(*args, **kwargs)
            drew = self._drew or reference_runs.torch_states() != drawn_from
        finally:
            self.suspended -= 1
        if drew and has_python_values(out):
            raise self.unsupported(draw_message(OUT_OF_LEAF), REMEDY)
        return self._bind(out, self._annotate(node(*before)), (args, kwargs))

    def _bind(self, out: Any, node: fx.Node, arguments: Any) -> Any:
        """Bind `out` to `node`; copy it where it is one of the inputs, as the output of dropout in eval mode is."""
        known = {id(leaf) for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)}
        if any(id(leaf) in known for leaf in pytree.tree_leaves(out)):
            self.suspended += 1
            out = pytree.tree_map_only(Tensor, lambda x: x.view_as(x) if id(x) in known else x, out)
            self.suspended -= 1
        self.values.bind(out, node)
        return out
