"""One executed ATen operation, as rules see it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from fxsurgery.ops.labels import Labels
from fxsurgery.ops.propagation_state import PropagationState


@dataclass(frozen=True, slots=True)
class AtenCall:
    """A call `op(*args, **kwargs)`: tensor arguments are `Labels`, results are meta tensors."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """Return the operation's name without namespace and in-place suffix."""
        return base_name(self.op)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the first result."""
        return tuple(self.results[0].shape)

    def argument(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """Return an argument by its name in the operation's schema."""
        if name in self.kwargs:
            return self.kwargs[name]
        for index, parameter in enumerate(self.op._schema.arguments):  # noqa: SLF001
            if parameter.name == name and index < len(self.args):
                return self.args[index]
        return default

    def tensors(self) -> list[Labels]:
        """Return every tensor among the arguments, including those in lists."""
        found = list[Labels]()
        for value in (*self.args, *self.kwargs.values()):
            members = value if isinstance(value, (list, tuple)) else [value]
            found.extend(member for member in members if isinstance(member, Labels))
        return found


Rule = Callable[[PropagationState, AtenCall], Sequence[Labels]]
"""Returns the labels of each result tensor, in order."""


@functools.cache
def base_name(op: OpOverload) -> str:
    """Return `relu` for `aten::relu_.default`; keeps leading underscores and the namespace of other libraries."""
    space, name = op._schema.name.split("::")  # noqa: SLF001
    return plain_name(name) if space == "aten" else f"{space}::{name}"


def plain_name(name: str) -> str:
    """Return the name of an ATen operation without the trailing underscore of in-place variants."""
    return name if name.startswith("_") else name.rstrip("_")


def dims_of(dims: int | Sequence[int] | None, ndim: int) -> list[int]:
    """Return a dim argument as a list of non-negative dims; None or an empty list means all dims."""
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])]  # type: ignore[operator]
