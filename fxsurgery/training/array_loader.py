"""Batches of tensors in memory by index: those of a `DataLoader`, in a fraction of its time."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from fxsurgery.inputs import tensors_in
from fxsurgery.seeding import mix


def samples(batch: object) -> int:
    """Return the length of the first tensor of a batch. `Task.samples` distinguishes inputs and target."""
    return next((len(x) for _, x in tensors_in(batch) if x.dim()), 1)


class Arrays(Dataset[Any]):
    """Tensors of equal length in tuples and dicts, read one batch at a time."""

    def __init__(self, tensors: Any) -> None:  # noqa: ANN401
        self.tensors = tensors

    def __len__(self) -> int:
        return samples(self.tensors)

    @override
    def __getitem__(self, index: int) -> Any:
        return _indexed(self.tensors, index)

    def __getitems__(self, indices: list[int]) -> Any:  # noqa: ANN401
        """Return the whole batch, which needs no collation."""
        return _indexed(self.tensors, torch.as_tensor(indices))


def _indexed(value: Any, index: int | Tensor) -> Any:  # noqa: ANN401
    """Return rows of the tensors in plain tuples and dicts."""
    if isinstance(value, Tensor):
        return value[index]
    if isinstance(value, dict):
        return {key: _indexed(part, index) for key, part in value.items()}
    return tuple([_indexed(part, index) for part in value])


class Batches(Sampler[list[int]]):
    """Indices of each batch; `set_epoch` selects the order if they are shuffled."""

    drop_last = False

    def __init__(self, samples: int, batch_size: int, seed: int | None) -> None:
        self.samples, self.batch_size, self.seed, self.epoch = samples, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Use the order of an epoch."""
        self.epoch = epoch

    @override
    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.arrays():
            yield indices.tolist()

    def arrays(self) -> Iterator[NDArray[np.int64]]:
        """Yield the indices as NumPy arrays, which index tensors faster than lists."""
        order = np.arange(self.samples)
        if self.seed is not None:
            order = np.random.default_rng(mix(self.seed, self.epoch)).permutation(self.samples)
        for start in range(0, self.samples, self.batch_size):
            yield order[start : start + self.batch_size]

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch_size)


class ArrayLoader(DataLoader[Any]):
    """A `DataLoader` that reads batches of `Arrays` directly: its own overhead equals a small forward pass."""

    def __init__(self, arrays: Arrays, order: Batches) -> None:
        super().__init__(arrays, batch_sampler=order, collate_fn=_as_is)

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        torch.empty((), dtype=torch.int64).random_()  # `DataLoader` draws the seed of its workers here
        order = self.batch_sampler
        for indices in order.arrays() if isinstance(order, Batches) else order:  # type: ignore[union-attr]
            yield self.dataset.__getitems__(indices)  # type: ignore[attr-defined]


def _as_is(batch: Any) -> Any:  # noqa: ANN401
    return batch
