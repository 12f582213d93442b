"""Example inputs of any structure: what a model is called with, positional and by name.

The *batch* is dim 0 of the first tensor among them, and of every tensor that is as long there.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Place: TypeAlias = tuple[str | int, ...]
"""Where something is in a structure: keys, fields and indices, outermost first."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """`model(*args, **kwargs)`: tensors nested in tuples, lists and dicts; any other leaf is a constant."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Any]:
        """Tensors and constants, in the order of the flattened structure: what the placeholders stand for."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int | None:
        """The batch size; `None` where no tensor has a dim."""
        return next((len(x) for x in self.tensors if x.dim()), None)

    def is_batched(self, tensor: Tensor) -> bool:
        """Whether dim 0 of one of the tensors is the batch."""
        return bool(tensor.dim()) and len(tensor) == self.batch

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same structure with each tensor changed."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return type(self)(args, kwargs)

    def resized(self, samples: int) -> Self:
        """So many samples: the first ones, and over again where there are too few."""
        if not self.batch:
            return self
        rows = torch.arange(samples) % self.batch
        return self.map(lambda x: x[rows.to(x.device)] if self.is_batched(x) else x)

    def grown(self) -> Self:
        """One sample more: the first one again."""
        return self.resized((self.batch or 0) + 1)

    def joined(self, other: Self) -> Self:
        """The samples of both; what is not batched as it is here.

        Raises:
            ValueError: the other differs in structure, or in a size other than the batch.
        """
        structures = [pytree.tree_structure((x.args, dict(x.kwargs))) for x in (self, other)]
        if structures[0] != structures[1]:
            raise ValueError("inputs of another structure cannot be joined")
        pairs = zip(self.tensors, other.tensors, strict=True)
        try:
            both = iter([torch.cat([x, y]) if self.is_batched(x) else x for x, y in pairs])
        except RuntimeError as error:
            raise ValueError(f"inputs of other sizes cannot be joined: {error}") from error
        return self.map(lambda _: next(both))

    def names(self, forward: Callable[..., Any]) -> list[str]:
        """What `forward` calls each positional input, then the names of the others."""
        names = list[str]()
        for parameter in inspect.signature(forward).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"{parameter.name}_{i}" for i in range(len(self.args) - len(names))]
            elif parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
                names.append(parameter.name)
        return [*names[: len(self.args)], *self.kwargs]

    def clone(self) -> Self:
        """The same on memory of its own, for a model that writes to its inputs."""
        return self.map(lambda x: x.detach().clone())


def tensors_in(value: object, at: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """The tensors of any structure, such as a model's output or a batch, in order, and where they are.

    Dicts, tuples, lists, dataclasses, and all that PyTorch's pytree knows. For inputs: the order of `Inputs.tensors`.
    """
    if isinstance(value, Tensor):
        yield at, value
        return
    for key, part in _parts(value):
        yield from tensors_in(part, (*at, key))


def _parts(value: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in fields(value)]
    if isinstance(value, tuple | list):
        return zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    if type(value) in pytree.SUPPORTED_NODES:
        return enumerate(pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0])
    return ()
