"""What hands values of a tensor to Python, or acts on a tensor's state: no graph can repeat it."""

from fxsurgery.ops.facets import Refused
from fxsurgery.ops.operator import Kind, Operator

_NUMBER = Refused("a tensor value is converted to a Python number (item(), int(), float())", "Keep it a tensor")
_NUMPY = Refused("NumPy is called on a tensor", "Use the torch function of the same name")
_BRANCH_WORDS = "a Python branch depends on the value of a tensor"
_BRANCH = Refused(_BRANCH_WORDS, "Write it with torch.where or torch.clamp")


def _method(name: str, refused: Refused, *methods: str) -> Operator:
    return Operator(name=name, kind=Kind.HOST, methods=methods, is_named=not methods, refused=refused)


def _state(name: str) -> Operator:
    refused = Refused(f"Tensor.{name} is called, which acts on the tensor's own state", "Make a new tensor")
    return Operator(name=name, kind=Kind.HOST, refused=refused)


DECLARED = (
    *(_method(name, _NUMBER) for name in ("item", "tolist", "data_ptr")),
    _method("number", _NUMBER, "__int__", "__float__", "__index__", "__complex__"),
    _method("numpy", _NUMPY),
    _method("array", _NUMPY, "__array__"),
    *(_method(name, _BRANCH) for name in ("equal", "allclose", "is_nonzero")),
    _method("truth", _BRANCH, "__bool__"),
    _method("contains", Refused(_BRANCH_WORDS, "Write it with torch.isin and torch.where"), "__contains__"),
    _method(
        "format",
        Refused("a tensor value is formatted as text", "Take the print or the message out of forward"),
        "__format__",
    ),
    *map(_state, ("register_hook", "backward", "retain_grad", "set_", "share_memory_")),
)
