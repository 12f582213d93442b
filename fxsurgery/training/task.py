"""What is learned: data, loss and metric. Any task whose batches hold inputs and a target."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from fxsurgery.errors import DataError

Split = Callable[[Any], tuple[tuple[Any, ...], Any]]
"""From a batch to the model's positional inputs and the target."""


class Batches(Protocol):
    """Something that gives the same number of batches each time it is gone through."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


def inputs_and_target(batch: Any) -> tuple[tuple[Any, ...], Any]:  # noqa: ANN401
    """Everything but the last item of a batch is an input, the last is the target.

    Raises:
        DataError: the batch is not a sequence of two items or more.
    """
    if isinstance(batch, (list, tuple)) and len(batch) >= 2:
        return tuple(batch[:-1]), batch[-1]
    raise DataError(
        f"a batch is expected to be (inputs, target), but this one is {_describe(batch)}; say how to take it "
        "apart: Task.of(..., split=lambda batch: ((batch['image'],), batch['label']))"
    )


def accuracy(output: Tensor, target: Tensor) -> float:
    """The share of samples whose largest output, over dim 1, is the target class."""
    return float((output.argmax(1) == target).float().mean())


class EpochShuffle(Sampler[int]):
    """A shuffle that depends on the seed and the number of the epoch, and on nothing else."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed, self._epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The order of epoch number `epoch` comes next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        yield from torch.randperm(self._size, generator=generator).tolist()

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True, eq=False)
class Task:
    """Data with what makes a model good on it. Build one with `Task.of`."""

    train_data: Batches
    val_data: Batches
    test_data: Batches | None = None
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    metric: Callable[[Any, Any], Any] | None = accuracy
    """`None` scores by the loss itself."""
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    split: Split = field(default=inputs_and_target)

    @classmethod
    def of(  # noqa: PLR0913 -- one keyword for each thing a user may bring
        cls,
        train_data: Any,  # noqa: ANN401
        val_data: Any,  # noqa: ANN401
        test_data: Any = None,  # noqa: ANN401
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        metric: Callable[[Any, Any], Any] | None = None,
        metric_name: str | None = None,
        split: Split | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> "Task":
        """A task from loaders, datasets, or tuples of tensors or arrays.

        Args:
            train_data: a `DataLoader` (taken as it is), a `Dataset`, or `(inputs..., target)`. The latter two
                are shuffled anew each epoch by `seed`; a last batch of one sample is dropped, since batch
                norm cannot train on it.
            val_data: the same, in order; all selection is done on it.
            test_data: the same, or `None`.
            loss: `loss(output, target)`, a scalar to minimise; cross-entropy by default.
            metric: `metric(output, target)`, higher is better; accuracy for the default loss, else the loss
                itself, lower being better.
            metric_name: what to call it.
            split: takes a batch apart where it is not `(inputs..., target)`.
            batch_size: for data that is not a loader.
            seed: of the shuffle.

        Raises:
            DataError: data is missing, empty, or of a kind that is not known.
        """
        if metric is None and loss is None:
            metric, name, higher = accuracy, "accuracy", True
        elif metric is None:
            name, higher = "loss", False
        else:
            name, higher = getattr(metric, "__name__", "metric"), True
        test = None if test_data is None else _loader(test_data, "test_data", batch_size, None)
        return cls(
            _loader(train_data, "train_data", batch_size, seed),
            _loader(val_data, "val_data", batch_size, None),
            test,
            loss or F.cross_entropy,
            metric,
            metric_name or name,
            higher,
            split or inputs_and_target,
        )

    def example_inputs(self, samples: int = 2) -> tuple[Tensor, ...]:
        """The first samples of the first training batch, as the model's positional inputs.

        Raises:
            DataError: an input is not a tensor.
        """
        inputs, _ = self.split(next(iter(self.train_data)))
        for value in inputs:
            if not isinstance(value, Tensor):
                raise DataError(f"a model input is {_describe(value)}, not a tensor; pass split= to pick it out")
        return tuple(value[:samples].clone() for value in inputs)


def _loader(data: Any, name: str, batch_size: int, seed: int | None) -> Batches:  # noqa: ANN401
    if data is None:
        raise DataError(f"{name} is missing: pass {name}=(inputs, targets), a Dataset or a DataLoader")
    if isinstance(data, (list, tuple)) and all(isinstance(d, (Tensor, np.ndarray)) for d in data):
        data = _tensors(data, name)
    if isinstance(data, Dataset):
        size = len(data)  # type: ignore[arg-type]
        sampler = None if seed is None else EpochShuffle(size, seed)
        drop_one = seed is not None and size > batch_size and size % batch_size == 1
        data = DataLoader(data, batch_size=batch_size, sampler=sampler, drop_last=drop_one) if size else []
    if not (hasattr(data, "__iter__") and hasattr(data, "__len__")):
        raise DataError(f"{name} is {_describe(data)}; pass (inputs, targets), a Dataset or a DataLoader")
    if not len(data):
        raise DataError(f"{name} is empty: it has no batch")
    return data  # type: ignore[no-any-return]


def _tensors(data: Sequence[Any], name: str) -> Dataset[Any]:
    tensors = [torch.as_tensor(d) for d in data]
    sizes = [len(t) for t in tensors]
    if len(set(sizes)) > 1:
        raise DataError(f"{name}: inputs and targets differ in length: {sizes}")
    return TensorDataset(*tensors)


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return f"a dict with keys {sorted(map(str, value))}"
    if isinstance(value, Tensor):
        return f"one tensor of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def set_epoch(data: Batches, epoch: int) -> None:
    """Tell a loader's sampler, if it wants to know, which epoch comes next."""
    sampler = getattr(data, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
