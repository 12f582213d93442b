"""Operators that pass tensor values to Python, or change the state of a tensor; no graph can contain them."""

from fxsurgery.ops.facets import Unsupported
from fxsurgery.ops.operator import Kind, Operator

_NUMBER = Unsupported("a tensor value is converted to a Python number (item(), int(), float())", "Keep it a tensor")
_NUMPY = Unsupported("NumPy is called on a tensor", "Use the equivalent torch function")
_BRANCH_FACT = "a Python branch depends on the value of a tensor"
_BRANCH = Unsupported(_BRANCH_FACT, "Write it with torch.where or torch.clamp")


def _method(name: str, unsupported: Unsupported, *methods: str) -> Operator:
    return Operator(name=name, kind=Kind.HOST, methods=methods, is_named=not methods, unsupported=unsupported)


def _state(name: str) -> Operator:
    unsupported = Unsupported(f"Tensor.{name} is called, which changes the tensor's own state", "Create a new tensor")
    return Operator(name=name, kind=Kind.HOST, unsupported=unsupported)


DECLARED = (
    *(_method(name, _NUMBER) for name in ("item", "tolist", "data_ptr")),
    _method("number", _NUMBER, "__int__", "__float__", "__index__", "__complex__"),
    _method("numpy", _NUMPY),
    _method("array", _NUMPY, "__array__"),
    *(_method(name, _BRANCH) for name in ("equal", "allclose", "is_nonzero")),
    _method("truth", _BRANCH, "__bool__"),
    _method("contains", Unsupported(_BRANCH_FACT, "Write it with torch.isin and torch.where"), "__contains__"),
    _method(
        "format",
        Unsupported("a tensor value is formatted as text", "Remove the print or the message from forward"),
        "__format__",
    ),
    *map(_state, ("register_hook", "backward", "retain_grad", "set_", "share_memory_")),
)
