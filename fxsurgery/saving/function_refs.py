"""The functions and methods that a saved graph may call: torch operations only, no other Python code.

A saved graph refers to functions by name, and only names in the table below are valid. The table is built from torch's
operator namespaces. Nothing is imported and no attribute of a name is followed, so a modified graph can call nothing
but tensor operations.
"""

import builtins
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxsurgery.argument_names import usage
from fxsurgery.errors import SavingError

Function = Callable[..., Any]

OPERATORS = """
abs add and_ contains eq floordiv ge getitem gt iadd iand ifloordiv imod imul index inv invert ior ipow is_ is_not
isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor
ilshift irshift imatmul
""".split()
BUILTINS = "abs bool divmod float getattr int len max min pow round slice sum tuple list".split()
ATTRIBUTES = {"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag", "layout", "is_cuda", "nbytes",
              "requires_grad", "itemsize", "data", "training"}  # fmt: skip
"""Attributes that `getattr` may read."""
FORBIDDEN = {
    "boolean_dispatch", "from_file", "from_numpy", "frombuffer", "handle_torch_function", "has_torch_function",
    "has_torch_function_unary", "has_torch_function_variadic", "resize_as_", "resize_as_sparse_", "set_", "set_data",
    "record_stream", "retain_grad", "shallow_copy_data_", "data_ptr", "triplet_margin_with_distance_loss",
}  # fmt: skip
"""Operations on files or raw memory, operations that call a given function, and entries that are no operations."""
_FILES = {"filename", "file", "path"}
"""Argument names that identify operations on files."""
OP_NAMESPACES = ("aten", "prims", "torchvision")
NAMESPACES: tuple[tuple[str, types.ModuleType], ...] = (
    ("torch.nn.functional", torch.nn.functional),
    ("torch.linalg", torch.linalg),
    ("torch.fft", torch.fft),
    ("torch.special", torch.special),
    ("torch._C._nn", torch._C._nn),  # noqa: SLF001 -- what torch.nn.functional takes its operations from
)
NO_METHODS = FORBIDDEN | {
    "apply_", "backward", "map_", "map2_", "numpy", "register_hook", "register_post_accumulate_grad_hook", "reinforce",
    "resize_", "share_memory_", "storage", "tolist", "untyped_storage", "module_load", "pin_memory",
}  # fmt: skip
PLAIN_METHODS = {
    "bfloat16", "bool", "byte", "cdouble", "cfloat", "char", "count", "cpu", "cuda", "dim", "dim_order", "double",
    "element_size", "float", "half", "index", "int", "long", "lu", "ndimension", "nelement", "new_tensor", "numel",
    "short", "size", "to_sparse_coo", "type", "unique", "xpu",
}  # fmt: skip
"""Methods of tensors, and of the tuples that operations return, that are implemented in Python."""


def name_of(function: Function) -> str:
    """Return the name by which a saved graph refers to `function`.

    Raises:
        SavingError: it is not a torch operation.
    """
    try:
        found = _names().get(function)
    except TypeError:
        found = None
    if found is None and isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001
        name = str(function)
        found = f"torch.ops.{name}" if name.partition(".")[0] in OP_NAMESPACES else None
    if found is None:
        home, qualified_name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", function)
        raise SavingError(
            f"the function {home}.{qualified_name} is not a torch operation; keep the module that calls it as a "
            f"leaf with {usage('leaf_modules=(ThatModule,)', 'leaf_modules')}"
        )
    return found


def function_named(name: str) -> Function:
    """Return the function with the given name.

    Raises:
        SavingError: a saved graph may not call it.
    """
    if name.startswith("torch.ops."):
        return _operation(name)
    found = _table().get(name)
    if found is None:
        raise SavingError(
            f"a saved graph may not call {name!r}, which is not a torch operation; load only files saved by fxsurgery"
        )
    return found


def check_call(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that `getattr` reads a basic tensor attribute, or a public attribute of what a module returned.

    Raises:
        SavingError: it reads another attribute.
    """
    if function is not builtins.getattr:
        return
    name = args[1] if len(args) == 2 and not kwargs else None
    source = args[0] if args else None
    while isinstance(source, fx.Node) and source.target is operator.getitem:
        source = source.args[0] if source.args else None
    is_module_output = isinstance(source, fx.Node) and source.op == "call_module"
    is_public = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    if name not in ATTRIBUTES and not (is_module_output and is_public):
        raise SavingError(
            f"a saved graph may not read the attribute {name!r}, only {', '.join(sorted(ATTRIBUTES))}; load only files "
            "saved by fxsurgery"
        )


def reads_beyond(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True if a call that `check_call` accepts reads an attribute that tensors do not have."""
    return function is builtins.getattr and args[1] not in ATTRIBUTES


def check_method(name: str) -> None:
    """Check that a method is a tensor operation known to torch's dispatcher.

    Raises:
        SavingError: it is not.
    """
    known = name in PLAIN_METHODS or (name in _operations() and callable(getattr(Tensor, name, None)))
    if not known or name.startswith("_") or name in NO_METHODS:
        raise SavingError(
            f"a saved graph may not call the method {name!r}, which is not a tensor operation; load only files "
            "saved by fxsurgery"
        )


def _operation(name: str) -> Function:
    parts = name.split(".")[2:]
    plain = all(part.isidentifier() for part in parts)
    forbidden = len(parts) in {2, 3} and (parts[1] in FORBIDDEN or parts[1].startswith("__"))
    if len(parts) not in {2, 3} or not plain or forbidden or parts[0] not in OP_NAMESPACES:
        raise SavingError(
            f"a saved graph may not call {name!r}, which is not a torch operation; load only files saved by fxsurgery"
        )
    try:
        packet = getattr(getattr(torch.ops, parts[0]), parts[1])
        found = getattr(packet, parts[2]) if len(parts) == 3 else packet
    except AttributeError as error:
        raise SavingError(
            f"neither this PyTorch nor the imported libraries have the operation {name!r}; import the library that "
            "defines it, or load with the version of PyTorch that saved it"
        ) from error
    if not isinstance(found, torch._ops.OpOverload | torch._ops.OpOverloadPacket) or not _is_dispatched(found):  # noqa: SLF001
        raise SavingError(
            f"a saved graph may not call {name!r}, which is not a torch operation; load only files saved by fxsurgery"
        )
    return found


def _is_dispatched(operation: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> bool:
    """Return True if the dispatcher knows the operation: TorchScript-only ones such as `aten::save` write files."""
    if isinstance(operation, torch._ops.OpOverload):  # noqa: SLF001
        overloads = [operation]
    else:
        overloads = [getattr(operation, name) for name in operation.overloads()]  # type: ignore[no-untyped-call]
    try:
        for overload in overloads:
            torch._C._dispatch_find_schema_or_throw(overload._schema.name, overload._schema.overload_name)  # noqa: SLF001
    except RuntimeError:
        return False
    return all(_is_pure_computation(overload._schema) for overload in overloads)  # noqa: SLF001


def _is_pure_computation(schema: torch.FunctionSchema) -> bool:
    """Return True if an operation returns something or writes to an argument, and does not access files."""
    gives = bool(schema.returns) or any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    asserts = schema.name.startswith("aten::_assert")
    return (gives or asserts) and not any(a.name in _FILES for a in schema.arguments)


@functools.cache
def _operations() -> frozenset[str]:
    """Return the names of all ATen operations."""
    names = torch._C._dispatch_get_all_op_names()  # noqa: SLF001 -- what a dispatcher knows, and not TorchScript
    return frozenset(n.removeprefix("aten::").partition(".")[0] for n in names if n.startswith("aten::"))


@functools.cache
def _table() -> dict[str, Function]:
    return dict(_entries())


@functools.cache
def _names() -> dict[Function, str]:
    names = dict[Function, str]()
    for name, function in _entries():
        names.setdefault(function, name)
    return names


def _entries() -> Iterator[tuple[str, Function]]:
    """Yield every name with its function; the canonical name of a function comes first."""
    yield from ((f"operator.{name}", getattr(operator, name)) for name in OPERATORS)
    yield from ((name, getattr(builtins, name)) for name in BUILTINS)
    yield from ((f"math.{name}", f) for name, f in vars(math).items() if callable(f) and name[0] != "_")
    for name in dir(torch._C._VariableFunctions):  # noqa: SLF001 -- the operations among what torch offers
        if _is_allowed(name) and callable(function := getattr(torch, name, None)):
            yield f"torch.{name}", function
    yield from ((f"torch.{name}", getattr(torch, name)) for name in torch.functional.__all__)
    # These inspect types or sizes; `_assert` checks a condition.
    for name in ("_assert", "is_tensor", "sym_int", "sym_float", "sym_not", "sym_max", "sym_min", "tensor", "Size"):
        yield f"torch.{name}", getattr(torch, name)
    for prefix, namespace in NAMESPACES:
        for name, function in sorted(vars(namespace).items()):
            if _is_allowed(name) and _is_operation(function):
                yield f"{prefix}.{name}", function


def _is_allowed(name: str) -> bool:
    return not name.startswith("_") and name not in FORBIDDEN


def _is_operation(function: object) -> bool:
    if inspect.isbuiltin(function):
        return True
    home = getattr(function, "__module__", "") or ""
    return inspect.isfunction(function) and home in {"torch.nn.functional", "torch.functional", "torch._jit_internal"}
