"""Loaders made of tensors and datasets, and the batches of an epoch.

The order of a shuffled epoch is a function of the seed and the epoch alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from fxsurgery.argument_names import named
from fxsurgery.errors import DataError, reason_of
from fxsurgery.example_inputs import holds_numbers, tensor_of
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import Count, checked
from fxsurgery.training.array_loader import ArrayLoader, Arrays, Batches, samples

Loader: TypeAlias = DataLoader[Any]
COUNTED_BATCHES = 1000
"""Number of batches that a loader without a length is read for, to count them or to validate."""


@checked(DataError)
def loader_of(data: object, batch_size: Count, seed: int | None, name: str) -> Loader:
    """Return a loader of `data`, shuffled if there is a seed. A `DataLoader` is returned as it is.

    Args:
        data: a `DataLoader`, a `Dataset`, or tensors or arrays in a tuple, the last one the target, or in a dict.
        batch_size: batch size of anything but a `DataLoader`.
        seed: seed of the shuffle; `None` keeps the order.
        name: name of the data in messages.

    Raises:
        DataError: the data are of another type, have no samples, or their arrays differ in length.
    """
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=batch_size)
    if isinstance(data, tuple | list | Mapping):
        arrays = Arrays(_tensors(data, name))
        return ArrayLoader(arrays, _order(arrays, batch_size, seed, name))
    if isinstance(data, Dataset):
        return DataLoader(data, batch_sampler=_order(data, batch_size, seed, name), collate_fn=_Collate(name))
    raise DataError(
        f"{named(name)} must be a DataLoader, a Dataset, or a tuple of tensors (inputs, target) or a dict of them, "
        f"not {describe(data)}"
    )


def _order(data: object, batch_size: int, seed: int | None, name: str) -> Batches:
    if not isinstance(data, Sized):
        raise DataError(f"{named(name)} is a Dataset without a length: give a DataLoader or an IterableDataset")
    if not len(data):
        raise DataError(f"{named(name)} has no samples; give at least one")
    return Batches(len(data), batch_size, seed)


@dataclass(frozen=True)
class _Collate:
    """PyTorch's default collation, with an error that names the data."""

    name: str

    def __call__(self, samples: list[Any]) -> Any:  # noqa: ANN401
        try:
            return default_collate(samples)
        except (TypeError, RuntimeError, ValueError, KeyError) as error:
            shown = ", ".join(map(describe, samples[:2]))
            raise DataError(
                f"{self.name}: its samples cannot be made into a batch, as from {shown}: {reason_of(error)}; give a "
                "DataLoader with a collate_fn"
            ) from error


def _tensors(data: tuple[Any, ...] | list[Any] | Mapping[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return the arrays as tensors in plain tuples and dicts; inputs may be a dict within a tuple."""
    if len(data) < 2:
        raise DataError(f"{named(name)} must hold inputs and a target, (x, y); got {describe(data)}")
    parts = data.values() if isinstance(data, Mapping) else data
    arrays = [x for part in parts for x in (part.values() if isinstance(part, Mapping) else [part])]
    if wrong := [x for x in arrays if not isinstance(x, Tensor | np.ndarray) or not x.ndim]:
        raise DataError(
            f"{named(name)} must hold tensors or arrays of samples, not {describe(wrong[0])}; "
            "several inputs go as (a, b, y) or as a dict, a list of batches or samples in a DataLoader"
        )
    if any(isinstance(x, Tensor) and (x.is_nested or x.is_meta or x.layout is not torch.strided) for x in arrays):
        raise DataError(
            f"{named(name)} holds a sparse, nested or meta tensor, of which no batches can be drawn: give it dense"
        )
    if odd := [x for x in arrays if isinstance(x, np.ndarray) and not holds_numbers(x)]:
        raise DataError(
            f"{named(name)} must hold numbers, not an array of type {odd[0].dtype}; encode it as numbers first"
        )
    if len({len(x) for x in arrays}) > 1:
        raise DataError(
            f"{named(name)} holds different numbers of samples: {describe(data)}; give as many targets as inputs"
        )
    return _plain(data)


def _plain(data: Any) -> Any:  # noqa: ANN401
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, tuple | list):
        return tuple(map(_plain, data))
    return tensor_of(data) if isinstance(data, np.ndarray) else data


def has_length(loader: Loader) -> bool:
    """Return whether a loader has a length."""
    try:
        len(loader)
    except TypeError:
        return False
    return True


def count(loader: Loader, name: str) -> int:
    """Return the number of batches per epoch; of a loader without a length at most `COUNTED_BATCHES`.

    Raises:
        DataError: the loader is empty.
    """
    length = len(loader) if has_length(loader) else sum(1 for _ in islice(loader, COUNTED_BATCHES))
    if not length:
        raise DataError(f"{named(name)} is empty: it gives no batch; give at least one, or set drop_last=False")
    return length


def ending(loader: Loader, most: int | None, name: str) -> Iterator[Any]:
    """Yield the batches of a loader to its end, or the first `most` of them.

    Raises:
        DataError: there are more batches than the length of the loader, or than `COUNTED_BATCHES` without a length.
    """
    if most is not None:
        yield from islice(loader, most)
        return
    limit = max(len(loader) * max(loader.num_workers, 1), COUNTED_BATCHES) if has_length(loader) else COUNTED_BATCHES
    for number, batch in enumerate(loader):
        if number == limit:
            raise DataError(
                f"{named(name)} has no end after {limit:,} batches, and its length does not say when it "
                "ends; give a loader with a length, or say how many batches to score: Task.of(train, val, "
                "val_batches=100)"
            )
        yield batch


@dataclass(slots=True)
class Drawn:
    """A batch and its epoch."""

    epoch: int
    batch: Any
    samples: int


def epoch_of(loader: Loader, epoch: int, name: str, size_of: Callable[[Any], int] = samples) -> Iterator[Drawn]:
    """Yield the batches of one epoch. A single sample left over at its end is skipped: norms cannot train on it.

    Args:
        loader: the data.
        epoch: index of the epoch, which determines the order.
        name: name of the data in messages.
        size_of: function that counts the samples of a batch.

    Raises:
        DataError: there is no batch.
    """
    set_epoch(loader, epoch)
    before = 0
    for batch in loader:
        size = size_of(batch)
        if size == 1 < before:
            continue
        before = max(size, 1)
        yield Drawn(epoch, batch, size)
    if not before:
        raise DataError(f"{named(name)} is empty: it gives no batch; give at least one, or set drop_last=False")


def set_epoch(loader: Loader, epoch: int) -> None:
    """Call `set_epoch` of samplers and datasets that have it."""
    for part in (loader.dataset, loader.sampler, loader.batch_sampler):
        if callable(tell := getattr(part, "set_epoch", None)):
            tell(epoch)


def describe(value: object) -> str:
    """Return types, shapes and dtypes of a value, for messages."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list) and len(value) <= 6:
        return f"{type(value).__name__}({', '.join(map(describe, value))})"
    if isinstance(value, Mapping) and len(value) <= 6:
        return f"{type(value).__name__}({', '.join(f'{k}={describe(v)}' for k, v in value.items())})"
    return type(value).__name__


def describe_inputs(inputs: Inputs) -> str:
    """Return types, shapes and dtypes of a model's inputs, for messages."""
    by_name = [f"{name}={describe(value)}" for name, value in inputs.kwargs.items()]
    return f"({', '.join([*map(describe, inputs.args), *by_name])})"
