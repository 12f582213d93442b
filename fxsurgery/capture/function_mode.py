"""Front end 2: run the model on real tensors and write down every torch call that is made.

A `TorchFunctionMode` sees each call of a torch function or method; calls of leaf modules are met in
`nn.Module.__call__`. Python runs as it does, so branches, loops and numbers are those of this run: two runs
at different batch sizes and one in train mode are aligned afterwards (`fxsurgery.capture.alignment`). What
a graph cannot hold (a value read out of a tensor, an `autograd.Function`, a region that changes gradients)
is an `OffenceError` that names the module it happened in, which can then be kept whole.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.capture import reference_runs
from fxsurgery.capture.attention import expanded
from fxsurgery.capture.canonical_ops import is_reflected, spelled
from fxsurgery.capture.diagnostics import running_line
from fxsurgery.capture.draws import OUT_OF_WHOLE, REMEDY, has_numbers, python_draws, steers
from fxsurgery.capture.functions import Function, stand_ins
from fxsurgery.capture.interception import listening
from fxsurgery.capture.module_mode import IsLeaf, ModuleMode
from fxsurgery.capture.outputs import plain_structure, unknown_types
from fxsurgery.capture.size_tape import SizeTape, size_method
from fxsurgery.capture.trace import REWRITE, OffenceError, Recording
from fxsurgery.capture.traced_sizes import plain
from fxsurgery.capture.unsupported_ops import goes_over, sized_by_values, unrepeatable
from fxsurgery.capture.value_table import ValueTable, state_of
from fxsurgery.inputs import Inputs


def record(
    model: nn.Module,
    inputs: Inputs,
    is_leaf: IsLeaf,
    whole: Iterable[Function] = (),
    *,
    trace_sizes: bool = True,
) -> Recording:
    """Run `model`, a private copy in the mode that is asked about, and write down what it does.

    Args:
        model: the copy.
        inputs: what it runs on.
        is_leaf: whether a module, at its path, is kept whole.
        whole: functions that are kept whole.
        trace_sizes: whether the sizes of tensors stay symbolic in the graph, rather than those of this run.

    Raises:
        OffenceError: it does something that a graph cannot hold.
    """
    recorder = _Recorder(model, is_leaf, trace_sizes=trace_sizes)
    inputs = inputs.clone()
    for position, leaf in enumerate(inputs.leaves):
        recorder.values.bind(leaf, recorder.graph.placeholder(f"input_{position}"))
    met = [place for function in whole for place in stand_ins(function, recorder.call_function)]
    try:
        with (
            listening(recorder.call, recorder.refuse_function, met),
            python_draws(model, recorder.refuse_draw),
            recorder,
        ):
            returned = model(*inputs.args, **inputs.kwargs)
        recorder.refuse_caught()
        recorder.refuse_assigned()
        leaves, spec = pytree.tree_flatten(plain_structure(returned, recorder.offence))
        recorder.graph.output([recorder.values.node_for(leaf) for leaf in leaves])
    finally:
        recorder.close()
    entered = tuple(dict.fromkeys(recorder.entered))
    return Recording(recorder.graph, spec, recorder.values.constants, entered, _notes(model, recorder, returned))


def _notes(model: nn.Module, recorder: "_Recorder", returned: Any) -> tuple[str, ...]:
    modules = {path: model.get_submodule(path) for path in dict.fromkeys(recorder.entered)}
    hooked = [path for path, m in modules.items() if m._forward_hooks or m._forward_pre_hooks]  # noqa: SLF001
    notes = [f"the output's {kind} comes as a dict, since pytree does not know it" for kind in unknown_types(returned)]
    if hooked:
        named = ", ".join(f"`{path}`" for path in hooked[:3]) + (f" and {len(hooked) - 3} more" if hooked[3:] else "")
        notes.append(f"the forward hooks of {named} ran in the recording: what they did is in the graph")
    if recorder.sized:
        notes.append(f"a size depends on the values of the inputs, and may hold for such as these: {recorder.sized[0]}")
    return tuple(notes)


class _Recorder(ModuleMode):
    """Writes down one run."""

    def __init__(self, model: nn.Module, is_leaf: IsLeaf, *, trace_sizes: bool) -> None:
        super().__init__(model, is_leaf)
        self.graph = fx.Graph()
        self._tape = SizeTape(self.graph, self._made) if trace_sizes else None
        self.values = ValueTable(self.graph, model, self._made, lambda: self._inside[-1], self._tape)
        self.entered: list[str] = [""]
        self.sized = list[str]()
        """Lines of the model's own forward where a size depends on the values of the inputs."""
        self._gradients = torch.is_grad_enabled()
        self._whole_ones = set[str]()
        self._drew, self._drawn = False, list[OffenceError]()

    def close(self) -> None:
        """End the recording: what it gave out and the user's code kept is plain from now on."""
        if self._tape is not None:
            self._tape.close()

    def offence(self, what: str, remedy: str = REWRITE) -> OffenceError:
        """The error for what a graph cannot hold, at the module that is running."""
        return OffenceError(self._inside[-1], what, remedy)

    def refuse_function(self, name: str) -> None:
        """Refuse an autograd function, unless it runs in a module that is kept whole."""
        if self.quiet:
            return
        if name == "BackwardHookFunction":
            raise self.offence("backward hooks are registered, which would be lost", "Remove them before capture")
        raise self.offence(f"the torch.autograd.Function {name} is called, whose backward would be lost")

    def refuse_draw(self, source: str, line: str) -> None:
        """Refuse a random number that comes to Python, unless that is within what is kept whole."""
        self._drew = True
        if not self.quiet:
            self._drawn.append(OffenceError(self._inside[-1], steers(source), REMEDY, line))
            raise self._drawn[0]

    def refuse_caught(self) -> None:
        """Refuse a draw whose refusal the user's own code caught."""
        if self._drawn:
            raise self._drawn[0]

    def refuse_assigned(self) -> None:
        """Refuse a run that put another tensor in the place of a buffer or parameter."""
        for name, tensor in state_of(self._model):
            path, _, own = name.rpartition(".")
            in_whole = any(f"{path}.".startswith(f"{whole}.") for whole in self._whole_ones)
            if not self.values.is_named(tensor) and not in_whole:
                what = f"forward assigns the buffer `{own}`, and a graph would not"
                raise OffenceError(path, what, f"Update it in place (self.{own}.copy_(...))")

    @override
    def meet_function(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in {"_set_grad_enabled", "set_grad_enabled"}:
            return func(*args, **kwargs)
        if reason := unrepeatable(func, name, args):
            raise self.offence(*reason)
        before = None if name in {"__get__", "__set__"} else (self.values.node_for(args), self.values.node_for(kwargs))
        sized = self._is_sized(name, args, kwargs, before)
        given, args, kwargs = (args, kwargs), plain(args), plain(kwargs)
        self.quiet += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self.quiet -= 1
        if before is None:
            return self._attribute(func, args[0], out)
        if size_method(name) is not None and isinstance(args[0], Tensor):
            return self._sizes(name, args[0], (*args[1:], *kwargs.values()), out)
        if name != "__setitem__" and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out)):
            return out
        self._check_surroundings((args, kwargs))
        node = self._spelled(func, name, before)
        node.meta["sized"] |= sized
        if name == "__setitem__":
            return out
        if self._tape is not None:
            self._tape.pin_count(name, *given, self.values.node_for)
        in_place = kwargs.get("inplace") or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
        return self._bound(out, node, () if in_place else (args, kwargs))

    def _spelled(self, func: Any, name: str, given: tuple[Any, Any]) -> fx.Node:
        spelling = spelled(func, name)
        if spelling is None:
            raise self.offence(f"the function {name} of {getattr(func, '__module__', None)} cannot be named in a graph")
        args, kwargs = given
        return self._made(self.graph.create_node(*spelling, args[::-1] if is_reflected(name) else args, kwargs))

    def _is_sized(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any) -> bool:
        """Whether the size of what a call gives depends on the values of the inputs, which a module may not do."""
        nodes = [n for n in pytree.tree_leaves(given) if isinstance(n, fx.Node)]
        if goes_over(name, args, kwargs) and any(n.meta.get("sized") for n in nodes):
            raise self.offence("Python goes over a tensor as long as the values of the inputs say")
        if not sized_by_values(name, args) or not any(n.meta.get("varies") for n in nodes):
            return False
        if self._inside[-1]:
            raise self.offence(f"the size of what {name} gives depends on the values of the inputs")
        self.sized.append(running_line())
        return True

    def _attribute(self, getter: Any, tensor: Tensor, out: Any) -> Any:
        """`x.T`, `x.shape`: a tensor is recorded, anything else is a number of this run."""
        name = getter.__self__.__name__
        if isinstance(out, Tensor) and name != "grad":
            if name == "data":
                raise self.offence("Tensor.data is read, which takes it out of the graph of gradients")
            read = self.graph.create_node("call_function", getattr, (self.values.node_for(tensor), name))
            return self._bound(out, self._made(read), tensor)
        return self._sizes(name, tensor, (), out)

    def _sizes(self, name: str, tensor: Tensor, dim: tuple[int, ...], out: Any) -> Any:
        """The sizes that were read of `tensor`, traced; `len()` gives Python a plain number."""
        method = size_method(name)
        if self._tape is None or method is None:
            return out
        node = self.values.node_for(tensor)
        if isinstance(out, tuple):
            return type(out)([self._tape.read(method, node, d, value=size) for d, size in enumerate(out)])
        if name == "__len__":
            return self._tape.pin(self._tape.read(method, node, 0, value=out))
        return self._tape.read(method, node, *dim, value=out)

    def _made(self, node: fx.Node) -> fx.Node:
        node.meta["inside"], node.meta["line"] = self._inside[-1], running_line()
        node.meta["sized"] = any(n.meta.get("sized") for n in node.all_input_nodes)
        node.meta["varies"] = any(n.op == "placeholder" or n.meta.get("varies") for n in node.all_input_nodes)
        return node

    def _check_surroundings(self, given: Any) -> None:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                raise self.offence("the forward pass enters an autocast region, which would be lost")
        if torch.is_grad_enabled() == self._gradients:
            return
        if any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves(given)):
            raise self.offence("gradients are turned off or on, by torch.no_grad or by an autograd.Function")

    @override
    def meet_module(
        self, run: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call whole if the module is a leaf, what it does otherwise."""
        if self._is_leaf(module, path):
            return self._whole(run, path, args, kwargs)
        if isinstance(module, nn.MultiheadAttention) and _is_batched(args, kwargs):
            return expanded(module)(*args, **kwargs)
        self.entered.append(path)
        out = run(*args, **kwargs)
        self.values.remember(out, path)
        return out

    def call_function(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Meet a function that is kept whole."""
        if self.quiet:
            return function(*args, **kwargs)

        def node(*given: Any) -> fx.Node:
            made = self.graph.call_function(function, *given)
            # Read back, a graph module is traced through its code: the function is to be left out of that too.
            made.meta["is_wrapped"] = True
            return made

        return self._run_whole(function, args, kwargs, node)

    def _whole(self, run: Callable[..., Any], path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._whole_ones.add(path)
        self._check_surroundings(list(self._model.get_submodule(path).parameters()))
        return self._run_whole(run, args, kwargs, lambda *given: self.graph.call_module(path, *given))

    def _run_whole(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        node: Callable[[Any, Any], fx.Node],
    ) -> Any:
        before = self.values.node_for(args), self.values.node_for(kwargs)
        self._check_surroundings((args, kwargs))
        args, kwargs = plain(args), plain(kwargs)
        self.quiet += 1
        self._drew, drawn_from = False, reference_runs.torch_states()
        try:
            out = run(*args, **kwargs)
            drew = self._drew or reference_runs.torch_states() != drawn_from
        finally:
            self.quiet -= 1
        if drew and has_numbers(out):
            raise self.offence(steers(OUT_OF_WHOLE), REMEDY)
        return self._bound(out, self._made(node(*before)), (args, kwargs))

    def _bound(self, out: Any, node: fx.Node, given: Any) -> Any:
        """`out`, bound to `node`, and told apart from what was given: in eval mode, dropout gives back its input."""
        known = {id(leaf) for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)}
        if any(id(leaf) in known for leaf in pytree.tree_leaves(out)):
            self.quiet += 1
            out = pytree.tree_map_only(Tensor, lambda x: x.view_as(x) if id(x) in known else x, out)
            self.quiet -= 1
        self.values.bind(out, node)
        return out


def _is_batched(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    query = args[0] if args else kwargs.get("query")
    return isinstance(query, Tensor) and query.dim() == 3
