"""Front end 2: run the model on real tensors and write down every torch call that is made.

A `TorchFunctionMode` sees each call of a torch function or method; calls of leaf modules are met in
`nn.Module.__call__`. Python runs as it does, so branches, loops and numbers are those of this run: two runs
at different batch sizes and one in train mode are aligned afterwards (`fxsurgery.capture.alignment`). What
a graph cannot hold (a value read out of a tensor, an `autograd.Function`, a region that changes gradients)
is an `OffenceError` that names the module it happened in, which can then be kept whole.
"""

import builtins
import functools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.capture.attention import expanded, is_plain
from fxsurgery.inputs import Inputs

VALUES = {
    "__bool__", "item", "tolist", "numpy", "__int__", "__float__", "__index__", "__complex__", "__array__", "data_ptr",
    "__contains__", "__format__",
}  # fmt: skip
"""Methods that read a value out of a tensor."""

STATE = {"requires_grad_", "register_hook", "backward", "retain_grad", "set_", "share_memory_", "resize_"}
"""Methods that a graph cannot repeat."""

DUNDERS = {
    "__getitem__": operator.getitem, "__setitem__": operator.setitem,
    "__add__": operator.add, "__sub__": operator.sub, "__mul__": operator.mul, "__truediv__": operator.truediv,
    "__floordiv__": operator.floordiv, "__mod__": operator.mod, "__pow__": operator.pow,
    "__matmul__": operator.matmul, "__neg__": operator.neg, "__invert__": operator.invert, "__abs__": builtins.abs,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor,
    "__lshift__": operator.lshift, "__rshift__": operator.rshift,
    "__eq__": operator.eq, "__ne__": operator.ne, "__lt__": operator.lt, "__le__": operator.le,
    "__gt__": operator.gt, "__ge__": operator.ge,
    "__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul, "__itruediv__": operator.itruediv,
    "__ifloordiv__": operator.ifloordiv, "__ipow__": operator.ipow, "__iand__": operator.iand, "__ior__": operator.ior,
}  # fmt: skip
REFLECTED = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rtruediv__": operator.truediv,
    "__rdiv__": operator.truediv, "__rfloordiv__": operator.floordiv, "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul, "__rmod__": operator.mod, "__rand__": operator.and_, "__ror__": operator.or_,
    "__rxor__": operator.xor,
}  # fmt: skip

CONSTANTS = (
    int, float, complex, bool, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""What may stand among a node's arguments beside tensors."""


class OffenceError(Exception):
    """A graph cannot hold what happened; `path` is the innermost of the user's modules where it did."""

    def __init__(self, path: str, what: str, remedy: str = "Write it in differentiable torch operations") -> None:
        super().__init__(what)
        self.path, self.remedy = path, remedy


@dataclass(frozen=True, eq=False)
class Recording:
    """What one run did."""

    graph: fx.Graph
    output: Any
    """The structure that the model returned, with nodes for its tensors."""
    constants: Mapping[str, Tensor]
    """Tensors that no recorded call made, by the names under which the graph reads them."""
    entered: tuple[str, ...]
    """Paths of the modules whose code was recorded."""


def record(model: nn.Module, inputs: Inputs, is_leaf: Callable[[nn.Module, str], bool]) -> Recording:
    """Run `model`, a private copy in the mode that is asked about, and write down what it does.

    Raises:
        OffenceError: it does something that a graph cannot hold.
    """
    recorder = _Recorder(model, is_leaf)
    inputs = inputs.clone()
    for position, leaf in enumerate(inputs.leaves):
        recorder.bind(leaf, recorder.graph.placeholder(f"input_{position}"))
    with _listening(recorder):
        returned = model(*inputs.args, **inputs.kwargs)
    output = recorder.argument(returned_structure(returned, recorder.offence))
    return Recording(recorder.graph, output, recorder.constants, tuple(dict.fromkeys(recorder.entered)))


def returned_structure(returned: Any, offence: Callable[[str], Exception]) -> Any:
    """The output as tuples, lists and dicts where PyTorch does not know its type."""
    leaves, spec = pytree.tree_flatten(returned)
    plain = [_plain(leaf, offence) for leaf in leaves]
    return pytree.tree_unflatten(plain, spec)


def _plain(leaf: Any, offence: Callable[[str], Exception]) -> Any:
    if isinstance(leaf, (Tensor, *CONSTANTS)):
        return leaf
    if isinstance(leaf, Mapping):
        return {k: returned_structure(v, offence) for k, v in leaf.items()}
    fields = getattr(leaf, "__dataclass_fields__", None)
    if fields is not None:
        return {k: returned_structure(getattr(leaf, k), offence) for k in fields}
    kind = type(leaf).__name__
    if "cache" in kind.lower():
        raise offence(f"the output holds a {kind}, the keys and values of earlier tokens: call it with use_cache=False")
    raise offence(f"the output holds a {kind}, which is neither a tensor nor a dict, tuple, list or dataclass of them")


@contextmanager
def _listening(recorder: "_Recorder") -> Iterator[None]:
    """Every torch call, module call and autograd function goes by `recorder`; all is put back after."""
    call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recorder.call(functools.partial(call, module), module, args, kwargs)

    def applied(cls: type, *args: Any, **kwargs: Any) -> Any:
        if recorder.quiet:
            return apply.__func__(cls, *args, **kwargs)
        raise recorder.offence(f"the torch.autograd.Function {cls.__name__} is called, whose backward would be lost")

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Module, "__call__", called))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(applied)))
        stack.enter_context(mock.patch.object(torch.compiler, "_is_compiling_flag", new=True))
        stack.enter_context(mock.patch.object(torch.compiler, "_is_exporting_flag", new=True))
        stack.enter_context(recorder)
        yield


@dataclass
class _Where:
    """Where the run is."""

    inside: list[str] = field(default_factory=lambda: [""])
    grad: bool = field(default_factory=torch.is_grad_enabled)


class _Recorder(TorchFunctionMode):
    """Writes down one run."""

    def __init__(self, model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.entered: list[str] = [""]
        self.quiet = 0
        self._model, self._is_leaf, self._where = model, is_leaf, _Where()
        self._paths: dict[nn.Module, str] = {}
        for path, module in model.named_modules():
            self._paths.setdefault(module, path)
        own = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._named: dict[int, str] = {}
        for name, tensor in own:
            self._named.setdefault(id(tensor), name)
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[object] = []

    def offence(self, what: str) -> OffenceError:
        """The error for what a graph cannot hold, at the module that is running."""
        return OffenceError(self._where.inside[-1], what)

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if self.quiet or name in {"_set_grad_enabled", "set_grad_enabled"}:
            return func(*args, **kwargs)
        if name in VALUES:
            raise self.offence(f"the value of a tensor is read (Tensor.{name})")
        if name in STATE or name == "__set__":
            raise self.offence(f"Tensor.{name} is called, which acts on the tensor's own state")
        before = None if name == "__get__" else (self.argument(args), self.argument(kwargs))
        self.quiet += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self.quiet -= 1
        if before is None:
            return self._attribute(func, args[0], out)
        if name != "__setitem__" and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(out)):
            return out
        self._check_surroundings((args, kwargs))
        node = self._node(func, name, *before)
        if name != "__setitem__":
            self.bind(out, node)
        return out

    def _attribute(self, getter: Any, tensor: Tensor, out: Any) -> Any:
        """`x.T`, `x.shape`: a tensor is recorded, anything else is a number of this run."""
        name = getter.__self__.__name__
        if isinstance(out, Tensor) and name != "grad":
            if name == "data":
                raise self.offence("Tensor.data is read, which takes it out of the graph of gradients")
            self.bind(out, self.graph.call_function(getattr, (self.argument(tensor), name)))
        return out

    def _node(self, func: Any, name: str, args: Any, kwargs: Any) -> fx.Node:
        if name in DUNDERS:
            return self._made(self.graph.call_function(DUNDERS[name], args, kwargs))
        if name in REFLECTED:
            return self._made(self.graph.call_function(REFLECTED[name], (args[1], args[0])))
        method = getattr(torch.Tensor, name, None)
        if method is func or getattr(func, "__module__", None) == "torch._tensor":
            return self._made(self.graph.call_method(name, args, kwargs))
        if not _is_importable(func):
            raise self.offence(f"the function {name} of {getattr(func, '__module__', None)} cannot be named in a graph")
        return self._made(self.graph.call_function(func, args, kwargs))

    def _made(self, node: fx.Node) -> fx.Node:
        node.meta["inside"] = self._where.inside[-1]
        return node

    def _check_surroundings(self, given: Any) -> None:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                raise self.offence("the forward pass enters an autocast region, which would be lost")
        if torch.is_grad_enabled() == self._where.grad:
            return
        if any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves(given)):
            raise self.offence("the forward pass turns gradients off or on for something that has them")

    def call(self, run: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Meet a module call: record it whole if it is a leaf, what it does otherwise."""
        path = self._paths.get(module)
        if self.quiet or path is None or module is self._model:
            return run(*args, **kwargs)
        self._where.inside.append(path)
        if is_plain(module) and _is_batched(args, kwargs) and not self._is_leaf(module, path):
            out = expanded(module)(*args, **kwargs)  # type: ignore[arg-type]
        elif self._is_leaf(module, path):
            out = self._whole(run, path, args, kwargs)
        else:
            self.entered.append(path)
            out = run(*args, **kwargs)
        self._where.inside.pop()
        return out

    def _whole(self, run: Callable[..., Any], path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = self.argument(args), self.argument(kwargs)
        self._check_surroundings((args, kwargs))
        self.quiet += 1
        try:
            out = run(*args, **kwargs)
        finally:
            self.quiet -= 1
        self.bind(out, self._made(self.graph.call_module(path, *before)))
        return out

    def argument(self, value: Any) -> Any:
        """`value` with nodes for what the graph made."""
        if id(value) in self._nodes:
            return self._nodes[id(value)]
        if isinstance(value, Tensor):
            return self._named_tensor(value)
        if isinstance(value, (list, tuple)):
            parts = [self.argument(v) for v in value]
            plain = tuple if isinstance(value, torch.Size) else type(value)
            return plain(*parts) if hasattr(value, "_fields") else plain(parts)
        if isinstance(value, dict):
            return {k: self.argument(v) for k, v in value.items()} if type(value) is dict else self._record(value)
        if isinstance(value, slice):
            return slice(*(self.argument(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, CONSTANTS):
            return value
        if hasattr(value, "__index__") and not isinstance(value, nn.Module):
            return int(value)
        raise self.offence(f"a {type(value).__name__} is handed to a torch function or a module that is kept whole")

    def _record(self, value: Any) -> Any:
        """A dict of another type, as a model's output: its own structure with nodes in it."""
        leaves, spec = pytree.tree_flatten(value)
        if len(leaves) == 1 and leaves[0] is value:
            return {k: self.argument(v) for k, v in value.items()}
        return pytree.tree_unflatten([self.argument(leaf) for leaf in leaves], spec)

    def _named_tensor(self, tensor: Tensor) -> fx.Node:
        name = self._named.get(id(tensor))
        if name is None:
            if tensor.requires_grad:
                raise self.offence("a tensor with gradients is used that no recorded call made (a scripted function?)")
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
        # At the top: a constant that is written to in place must be read once.
        self._alive.append(tensor)
        with self.graph.inserting_after(self._last_input()):
            self._nodes[id(tensor)] = self.graph.create_node("get_attr", name)
        return self._nodes[id(tensor)]

    def _last_input(self) -> fx.Node:
        return [n for n in self.graph.nodes if n.op == "placeholder"][-1]

    def bind(self, value: Any, node: fx.Node) -> None:
        """Let `value`, and what is in it, be what `node` gives."""
        if isinstance(value, CONSTANTS):
            return
        self._nodes[id(value)] = node
        self._alive.append(value)
        if isinstance(value, Tensor):
            return
        if isinstance(value, Mapping):
            parts = [(operator.getitem, k, v) for k, v in value.items()]
        elif isinstance(value, (list, tuple)):
            parts = [(operator.getitem, i, v) for i, v in enumerate(value)]
        else:
            parts = [(getattr, k, v) for k, v in getattr(value, "__dict__", {}).items()]
        for read, key, part in parts:
            if not isinstance(part, CONSTANTS):
                self.bind(part, self._made(self.graph.call_function(read, (node, key))))


def _is_batched(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    query = args[0] if args else kwargs.get("query")
    return isinstance(query, Tensor) and query.dim() == 3


@functools.cache
def _is_importable(func: Callable[..., Any]) -> bool:
    """Whether generated code can name a function."""
    try:
        root, *path = fx.node._get_qualified_name(func).split(".")  # noqa: SLF001 -- what the code will call it
        return functools.reduce(getattr, path, sys.modules[root]) is func
    except (AttributeError, KeyError, RuntimeError):
        return False
