"""The functions and methods that a saved graph may call: torch's own computations, and no other Python.

A saved graph names them; a name means something only by the table here, which is made of torch's operator
namespaces. Nothing is imported and no attribute of a name is followed, so a graph that somebody changed can ask for
nothing but arithmetic.
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
"""What `getattr` may read of a value."""
FORBIDDEN = {
    "boolean_dispatch", "from_file", "from_numpy", "frombuffer", "handle_torch_function", "has_torch_function",
    "has_torch_function_unary", "has_torch_function_variadic", "resize_as_", "resize_as_sparse_", "set_", "set_data",
    "record_stream", "retain_grad", "shallow_copy_data_", "data_ptr", "triplet_margin_with_distance_loss",
}  # fmt: skip
"""Operations on files and on raw memory, or that call a function given; and what is no operation."""
_FILES = {"filename", "file", "path"}
"""Names of arguments of operations on files."""
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
"""Methods of tensors, and of the tuples that they give, that Python makes of operations."""


def name_of(function: Function) -> str:
    """The name by which a saved graph calls `function`.

    Raises:
        SavingError: it is none of torch's computations.
    """
    try:
        found = _names().get(function)
    except TypeError:
        found = None
    if found is None and isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):  # noqa: SLF001
        name = str(function)
        found = f"torch.ops.{name}" if name.partition(".")[0] in OP_NAMESPACES else None
    if found is None:
        home, own = getattr(function, "__module__", "?"), getattr(function, "__qualname__", function)
        raise SavingError(
            f"the function {home}.{own} is none of torch's own; keep the module that calls it whole with "
            f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')}"
        )
    return found


def named(name: str) -> Function:
    """The function of that name.

    Raises:
        SavingError: a saved graph may not call it.
    """
    if name.startswith("torch.ops."):
        return _operation(name)
    found = _table().get(name)
    if found is None:
        raise SavingError(
            f"a saved graph may not call {name!r}: it is none of torch's operations; load only what fxsurgery saved"
        )
    return found


def check_call(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse `getattr` of anything but the plain facts of a tensor, and the public attributes of what a module gave.

    Raises:
        SavingError: it reads something else.
    """
    if function is not builtins.getattr:
        return
    name = args[1] if len(args) == 2 and not kwargs else None
    source = args[0] if args else None
    while isinstance(source, fx.Node) and source.target is operator.getitem:
        source = source.args[0] if source.args else None
    given = isinstance(source, fx.Node) and source.op == "call_module"
    public = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
    if name not in ATTRIBUTES and not (given and public):
        raise SavingError(
            f"a saved graph may read {', '.join(sorted(ATTRIBUTES))} of a value, and no {name!r}; load only what "
            "fxsurgery saved"
        )


def reads_beyond(function: Function, args: tuple[Any, ...]) -> bool:
    """Whether a call that `check_call` lets pass reads an attribute that tensors do not have."""
    return function is builtins.getattr and args[1] not in ATTRIBUTES


def check_method(name: str) -> None:
    """Refuse a method that is none of a tensor's computations: an operation that torch's dispatcher has.

    Raises:
        SavingError: it is not.
    """
    known = name in PLAIN_METHODS or (name in _operations() and callable(getattr(Tensor, name, None)))
    if not known or name.startswith("_") or name in NO_METHODS:
        raise SavingError(
            f"a saved graph may not call the method {name!r}: it is none of a tensor's operations; load only what "
            "fxsurgery saved"
        )


def _operation(name: str) -> Function:
    parts = name.split(".")[2:]
    plain = all(part.isidentifier() for part in parts)
    forbidden = len(parts) in {2, 3} and (parts[1] in FORBIDDEN or parts[1].startswith("__"))
    if len(parts) not in {2, 3} or not plain or forbidden or parts[0] not in OP_NAMESPACES:
        raise SavingError(
            f"a saved graph may not call {name!r}: it is none of torch's operations; load only what fxsurgery saved"
        )
    try:
        packet = getattr(getattr(torch.ops, parts[0]), parts[1])
        found = getattr(packet, parts[2]) if len(parts) == 3 else packet
    except AttributeError as error:
        raise SavingError(
            f"this PyTorch, or the libraries that are imported, have no operation {name!r}; import the library that "
            "has it, or load with the version of PyTorch that saved it"
        ) from error
    if not isinstance(found, torch._ops.OpOverload | torch._ops.OpOverloadPacket) or not _is_computed(found):  # noqa: SLF001
        raise SavingError(
            f"a saved graph may not call {name!r}: it is none of torch's operations; load only what fxsurgery saved"
        )
    return found


def _is_computed(operation: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> bool:
    """Whether the dispatcher knows it: TorchScript has others, such as `aten::save`, that write files."""
    if isinstance(operation, torch._ops.OpOverload):  # noqa: SLF001
        overloads = [operation]
    else:
        overloads = [getattr(operation, name) for name in operation.overloads()]  # type: ignore[no-untyped-call]
    try:
        for overload in overloads:
            torch._C._dispatch_find_schema_or_throw(overload._schema.name, overload._schema.overload_name)  # noqa: SLF001
    except RuntimeError:
        return False
    return all(_computes(overload._schema) for overload in overloads)  # noqa: SLF001


def _computes(schema: torch.FunctionSchema) -> bool:
    """Whether an operation gives something, or writes to a tensor given; and has nothing to do with files."""
    gives = bool(schema.returns) or any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    asserts = schema.name.startswith("aten::_assert")
    return (gives or asserts) and not any(a.name in _FILES for a in schema.arguments)


@functools.cache
def _operations() -> frozenset[str]:
    """The names of torch's own operations."""
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
    """Every name with its function; of several names of one function, the one to write comes first."""
    yield from ((f"operator.{name}", getattr(operator, name)) for name in OPERATORS)
    yield from ((name, getattr(builtins, name)) for name in BUILTINS)
    yield from ((f"math.{name}", f) for name, f in vars(math).items() if callable(f) and name[0] != "_")
    for name in dir(torch._C._VariableFunctions):  # noqa: SLF001 -- the operations among what torch offers
        if _is_open(name) and callable(function := getattr(torch, name, None)):
            yield f"torch.{name}", function
    yield from ((f"torch.{name}", getattr(torch, name)) for name in torch.functional.__all__)
    # These look at the tensor's type or at sizes; `_assert` checks.
    for name in ("_assert", "is_tensor", "sym_int", "sym_float", "sym_not", "sym_max", "sym_min", "tensor", "Size"):
        yield f"torch.{name}", getattr(torch, name)
    for prefix, namespace in NAMESPACES:
        for name, function in sorted(vars(namespace).items()):
            if _is_open(name) and _is_operation(function):
                yield f"{prefix}.{name}", function


def _is_open(name: str) -> bool:
    return not name.startswith("_") and name not in FORBIDDEN


def _is_operation(function: object) -> bool:
    if inspect.isbuiltin(function):
        return True
    home = getattr(function, "__module__", "") or ""
    return inspect.isfunction(function) and home in {"torch.nn.functional", "torch.functional", "torch._jit_internal"}
