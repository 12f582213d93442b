"""Inputs of a model, positional and keyword, of any structure.

The *batch* is one dim of each tensor that has an entry for every sample, given by `batch_dims`. By default it is dim 0
of the first tensor, and of every tensor with the same size there; `fxsurgery.batch_layout` infers it more reliably.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.errors import reason_of
from fxsurgery.printable import printable

InputPath: TypeAlias = tuple[str | int, ...]
"""Path in a structure: keys, fields and indices, outermost first."""
BatchDims: TypeAlias = tuple[int | None, ...]
"""Batch dim of each tensor among the inputs, in order; `None` for a tensor without one."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """`model(*args, **kwargs)`: tensors nested in tuples, lists and dicts; any other leaf is a constant."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_dims: BatchDims | None = None
    """Batch dim of each of `tensors`; inferred from their sizes if it is not given."""
    samples: int | None = None
    """Number of samples if no dim of a tensor has that size."""

    @override
    def __repr__(self) -> str:
        named = (f"{name}={_brief(value)}" for name, value in self.kwargs.items())
        return printable(f"Inputs({', '.join([*map(_brief, self.args), *named])})")

    @property
    def leaves(self) -> list[Any]:
        """Tensors and constants in the order of the flattened structure, which is that of the placeholders."""
        return list(self._leaves)

    @functools.cached_property
    def _leaves(self) -> tuple[Any, ...]:
        if not self.kwargs and all(isinstance(value, Tensor) for value in self.args):
            return tuple(self.args)
        return tuple(pytree.tree_leaves((self.args, dict(self.kwargs))))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    @property
    def dims(self) -> BatchDims:
        """The batch dim of each of `tensors`."""
        if self.batch_dims is not None:
            return self.batch_dims
        tensors = self.tensors
        return dims_of_size(tensors, next((len(x) for x in tensors if x.dim()), None))

    @property
    def batch(self) -> int | None:
        """The batch size; `None` if no tensor has a batch dim and `samples` is not given."""
        if self.batch_dims is None:
            return next((x.size(0) for x in self.tensors if x.dim()), self.samples)
        return next((x.size(d) for x, d in zip(self.tensors, self.dims, strict=True) if d is not None), self.samples)

    def batch_dim(self, tensor: Tensor) -> int | None:
        """Return the batch dim of one of the tensors; `None` if it has none."""
        return next((d for x, d in zip(self.tensors, self.dims, strict=True) if x is tensor), None)

    def is_batched(self, tensor: Tensor) -> bool:
        """Return True if this tensor, one of the inputs, has a batch dim."""
        return self.batch_dim(tensor) is not None

    @property
    def offsets(self) -> list[bool]:
        """Which tensors hold offsets: where each sample starts in a tensor without a batch dim, such as flat ids."""
        flat = self._unbatched_lengths()
        return [d is not None and _are_offsets(x, flat) for x, d in zip(self.tensors, self.dims, strict=True)]

    def holds_offsets(self, tensor: Tensor) -> bool:
        """Return True if this tensor, one of the inputs, holds offsets."""
        return any(found and x is tensor for x, found in zip(self.tensors, self.offsets, strict=True))

    @property
    def _has_lengths(self) -> bool:
        """Whether a tensor holds the lengths of the samples in an earlier tensor without a batch dim."""
        flat = set[int]()
        for x, dim in zip(self.tensors, self.dims, strict=True):
            if dim is None and x.dim():
                flat.add(len(x))
            elif flat and is_integer_vector(x) and int(x.sum()) in flat:
                return True
        return False

    @property
    def is_resizable(self) -> bool:
        """Whether there is a batch dim, and no tensor without one whose rows are divided by lengths."""
        has_rows = bool(self.batch) and any(dim is not None for dim in self.dims)
        return has_rows and not self._has_lengths

    @property
    def is_divisible(self) -> bool:
        """Whether each sample has its own rows: no offsets or lengths divide a tensor among the samples."""
        return self.is_resizable and not any(self.offsets)

    def _unbatched_lengths(self) -> set[int]:
        pairs = zip(self.tensors, self.dims, strict=True)
        return {len(x) for x, d in pairs if d is None and x.dim() and len(x)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same structure with `change` applied to each tensor, which must keep the meaning of its dims."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return type(self)(args, kwargs, self.batch_dims, self.samples)

    def map_batched(self, change: Callable[[Tensor, int], Tensor]) -> Self:
        """Return the same structure with `change(tensor, batch_dim)` applied to each tensor that has a batch dim."""
        dims = iter(self.dims)

        def changed(x: Tensor) -> Tensor:
            dim = next(dims)
            return x if dim is None else change(x, dim)

        return self.map(changed)

    def resized(self, samples: int) -> Self:
        """Return inputs with this number of samples: the first ones, repeated if there are too few.

        If the order of values matters, as in offsets or sorted lengths, the last sample is repeated. Inputs that cannot
        be resized (`is_resizable`) are returned unchanged.
        """
        if not self.is_resizable:
            return self
        rows = self.resized_rows(samples)
        return self.map_batched(lambda x, d: _taken(x, d, rows.to(x.device)))

    def resized_rows(self, samples: int) -> Tensor:
        """Return the indices of the samples that `resized` takes, (samples,)."""
        rows, size = torch.arange(samples), self.batch or 1
        return rows.clamp(max=size - 1) if self._is_ordered() else rows % size

    def _is_ordered(self) -> bool:
        pairs = zip(self.tensors, self.dims, strict=True)
        return any(d is not None and is_integer_vector(x) and _is_monotone(x) for x, d in pairs)

    def grown(self) -> Self:
        """Return inputs with one more sample."""
        return self.resized((self.batch or 0) + 1)

    def rows(self, start: int, stop: int) -> Self:
        """Return the samples from `start` to `stop`; tensors without a batch dim are unchanged."""
        return self.map_batched(lambda x, d: x.narrow(d, start, min(stop, x.size(d)) - start))

    def joined(self, other: Self) -> Self:
        """Return the samples of both; tensors without a batch dim are those of `self`.

        Raises:
            ValueError: the other differs in structure, or in a size other than the batch; or the samples of one
                have no rows of their own.
        """
        structures = [pytree.tree_structure((x.args, dict(x.kwargs))) for x in (self, other)]
        if structures[0] != structures[1]:
            raise ValueError("inputs of another structure cannot be joined")
        if not (self.is_divisible and other.is_divisible) and self.batch:
            raise ValueError("inputs whose offsets or lengths count out the rows of another tensor cannot be joined")
        triples = zip(self.tensors, other.tensors, self.dims, strict=True)
        try:
            both = iter([x if d is None else torch.cat([x, y], d) for x, y, d in triples])
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"inputs of other sizes cannot be joined: {reason_of(error)}") from error
        return self.map(lambda _: next(both))

    def names(self, forward: Callable[..., Any]) -> list[str]:
        """Return the names of the positional inputs in `forward`, then those of the keyword inputs."""
        names = list[str]()
        for parameter in inspect.signature(forward).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"{parameter.name}_{i}" for i in range(len(self.args) - len(names))]
            elif parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
                names.append(parameter.name)
        return [*names[: len(self.args)], *self.kwargs]

    def clone(self) -> Self:
        """Return a copy that shares no memory, for a model that writes to its inputs."""
        return self.map(lambda x: x.detach().clone())


def dims_of_size(tensors: Sequence[Tensor], size: int | None, first: int = 0) -> BatchDims:
    """Return the dim of that size for each tensor: `first` if it has that size, else dim 0; `None` if neither has."""

    def dim(x: Tensor) -> int | None:
        return next((d for d in (first, 0) if d < x.dim() and x.size(d) == size), None)

    return tuple(map(dim, tensors))


def _taken(x: Tensor, dim: int, rows: Tensor) -> Tensor:
    return x[rows] if dim == 0 else x.index_select(dim, rows)


def is_integer_vector(x: Tensor) -> bool:
    """Return True if a tensor has one dim and holds integers."""
    return x.dim() == 1 and not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool and not x.is_meta


def _is_monotone(x: Tensor) -> bool:
    """Return True if the values are monotone and not all equal."""
    steps = x[1:].long() - x[:-1].long()
    return bool(steps.any()) and bool((steps >= 0).all() or (steps <= 0).all())


def is_rising_from_zero(x: Tensor) -> bool:
    """Return True if a tensor is a vector of integers that starts at 0 and never decreases."""
    return is_integer_vector(x) and bool(len(x)) and not int(x[0]) and bool((x[1:] >= x[:-1]).all())


def _are_offsets(x: Tensor, lengths: set[int]) -> bool:
    """Return True if the values rise from 0 and stay within the size of a tensor without a batch dim."""
    return is_rising_from_zero(x) and any(int(x[-1]) <= n for n in lengths)


def tensors_in(value: object, at: InputPath = ()) -> Iterator[tuple[InputPath, Tensor]]:
    """Yield the tensors of any structure, such as a model's output or a batch, in order, each with its path.

    It may hold dicts, tuples, lists, dataclasses, and whatever PyTorch's pytree knows. The order of inputs is that of
    `Inputs.tensors`.
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


def _brief(value: object) -> str:
    """Return shapes and dtypes of tensors, and other values cut to one line."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_brief(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_brief, value))})"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
