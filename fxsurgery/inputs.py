"""Example inputs of any structure: what a model is called with, positional and by name.

The *batch* is one dim of each tensor that has a part for every sample, as `batch_dims` says. Where it is not given it
is dim 0 of the first tensor, and of every tensor that is as long there; `fxsurgery.batch_layout` infers it better.
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
"""Where something is in a structure: keys, fields and indices, outermost first."""
BatchDims: TypeAlias = tuple[int | None, ...]
"""For each tensor among the inputs, in order, the dim that is the batch; `None` where it has none."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """`model(*args, **kwargs)`: tensors nested in tuples, lists and dicts; any other leaf is a constant."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_dims: BatchDims | None = None
    """Which dim of each of `tensors` is the batch; inferred from their sizes alone where it is not given."""
    samples: int | None = None
    """Number of samples where no dim of a tensor is as long."""

    @override
    def __repr__(self) -> str:
        named = (f"{name}={_brief(value)}" for name, value in self.kwargs.items())
        return printable(f"Inputs({', '.join([*map(_brief, self.args), *named])})")

    @property
    def leaves(self) -> list[Any]:
        """Tensors and constants, in the order of the flattened structure: what the placeholders stand for."""
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
        """The batch size; `None` where no tensor has a batch dim and nothing else tells it."""
        if self.batch_dims is None:
            return next((x.size(0) for x in self.tensors if x.dim()), self.samples)
        return next((x.size(d) for x, d in zip(self.tensors, self.dims, strict=True) if d is not None), self.samples)

    def batch_dim(self, tensor: Tensor) -> int | None:
        """Which dim of one of the tensors is the batch; `None` where none is."""
        return next((d for x, d in zip(self.tensors, self.dims, strict=True) if x is tensor), None)

    def is_batched(self, tensor: Tensor) -> bool:
        """Whether one of the tensors has a batch dim."""
        return self.batch_dim(tensor) is not None

    @property
    def offsets(self) -> list[bool]:
        """Which tensors hold offsets: where each sample begins in a tensor that has no batch dim, such as flat ids."""
        flat = self._unbatched_lengths()
        return [d is not None and _are_offsets(x, flat) for x, d in zip(self.tensors, self.dims, strict=True)]

    def holds_offsets(self, tensor: Tensor) -> bool:
        """Whether one of the tensors holds offsets."""
        return any(found and x is tensor for x, found in zip(self.tensors, self.offsets, strict=True))

    @property
    def _has_lengths(self) -> bool:
        """Whether a tensor holds the lengths of the samples in one before it that has no batch dim."""
        flat = set[int]()
        for x, dim in zip(self.tensors, self.dims, strict=True):
            if dim is None and x.dim():
                flat.add(len(x))
            elif flat and is_integer_vector(x) and int(x.sum()) in flat:
                return True
        return False

    @property
    def is_resizable(self) -> bool:
        """Whether there is a batch dim, and no tensor without one whose rows are counted out among the samples."""
        has_rows = bool(self.batch) and any(dim is not None for dim in self.dims)
        return has_rows and not self._has_lengths

    @property
    def is_divisible(self) -> bool:
        """Whether each sample has rows of its own: no offsets or lengths share a tensor out among the samples."""
        return self.is_resizable and not any(self.offsets)

    def _unbatched_lengths(self) -> set[int]:
        pairs = zip(self.tensors, self.dims, strict=True)
        return {len(x) for x, d in pairs if d is None and x.dim() and len(x)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same structure with each tensor changed, all of whose dims mean what they did."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return type(self)(args, kwargs, self.batch_dims, self.samples)

    def map_batched(self, change: Callable[[Tensor, int], Tensor]) -> Self:
        """The same structure with each tensor that has a batch dim changed, given that dim."""
        dims = iter(self.dims)

        def changed(x: Tensor) -> Tensor:
            dim = next(dims)
            return x if dim is None else change(x, dim)

        return self.map(changed)

    def resized(self, samples: int) -> Self:
        """Return that many samples: the first ones, and over again where there are too few.

        Where the order of numbers matters, as of offsets or of sorted lengths, the last one over again.
        What cannot be resized stays as it is: see `is_resizable`.
        """
        if not self.is_resizable:
            return self
        rows = self.resized_rows(samples)
        return self.map_batched(lambda x, d: _taken(x, d, rows.to(x.device)))

    def resized_rows(self, samples: int) -> Tensor:
        """The samples that `resized` takes, by their numbers, (samples,)."""
        rows, size = torch.arange(samples), self.batch or 1
        return rows.clamp(max=size - 1) if self._is_ordered() else rows % size

    def _is_ordered(self) -> bool:
        pairs = zip(self.tensors, self.dims, strict=True)
        return any(d is not None and is_integer_vector(x) and _is_monotone(x) for x, d in pairs)

    def grown(self) -> Self:
        """One sample more."""
        return self.resized((self.batch or 0) + 1)

    def rows(self, start: int, stop: int) -> Self:
        """The samples from `start` to `stop`; what has no batch dim stays whole."""
        return self.map_batched(lambda x, d: x.narrow(d, start, min(stop, x.size(d)) - start))

    def joined(self, other: Self) -> Self:
        """The samples of both; what is not batched as it is here.

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


def dims_of_size(tensors: Sequence[Tensor], size: int | None, first: int = 0) -> BatchDims:
    """For each tensor the dim of that size: `first` where it is that long, else dim 0; `None` where neither is."""

    def dim(x: Tensor) -> int | None:
        return next((d for d in (first, 0) if d < x.dim() and x.size(d) == size), None)

    return tuple(map(dim, tensors))


def _taken(x: Tensor, dim: int, rows: Tensor) -> Tensor:
    return x[rows] if dim == 0 else x.index_select(dim, rows)


def is_integer_vector(x: Tensor) -> bool:
    """Whether a tensor has one dim and holds integers."""
    return x.dim() == 1 and not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool and not x.is_meta


def _is_monotone(x: Tensor) -> bool:
    """Whether the values only rise or only fall, and are not all the same."""
    steps = x[1:].long() - x[:-1].long()
    return bool(steps.any()) and bool((steps >= 0).all() or (steps <= 0).all())


def is_rising_from_zero(x: Tensor) -> bool:
    """Whether a tensor is a vector of integers that begin at 0 and never fall."""
    return is_integer_vector(x) and bool(len(x)) and not int(x[0]) and bool((x[1:] >= x[:-1]).all())


def _are_offsets(x: Tensor, lengths: set[int]) -> bool:
    """Whether the values rise from 0 and stay within the length of one of the tensors that have no batch dim."""
    return is_rising_from_zero(x) and any(int(x[-1]) <= n for n in lengths)


def tensors_in(value: object, at: InputPath = ()) -> Iterator[tuple[InputPath, Tensor]]:
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
