"""What is to be learned: data, loss and metric."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from fxsurgery.errors import DataError
from fxsurgery.training.batches import Loader, describe, epoch_of, loader_of
from fxsurgery.training.seeding import seeded

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Metric: TypeAlias = Callable[[Any, Any], float | Tensor]
Split: TypeAlias = Callable[[Any], tuple[Any, Any]]


def last_is_target(batch: Any) -> tuple[tuple[Any, ...], Any]:  # noqa: ANN401
    """Split a tuple or list: all but the last are model inputs, the last is the target.

    Raises:
        DataError: it is anything else.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise DataError(
            f"cannot tell inputs from target in a batch that is {describe(batch)}; "
            "give split=lambda batch: ((batch['image'],), batch['label']) or the like"
        )
    return tuple(batch[:-1]), batch[-1]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """The loss of classification: `output` (batch, classes, ...), `target` (batch, ...) of class numbers."""
    return nn.functional.cross_entropy(output, target)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of `target` (batch, ...) that the largest of `output` (batch, classes, ...) hits."""
    classes = target.argmax(1) if target.is_floating_point() else target
    return (output.argmax(1) == classes).double().mean()


@dataclass(frozen=True, eq=False)
class Task:
    """Data, loss and metric. `Task.of` makes one from tensors and data sets, too.

    Both `loss` and `metric` take the model's output and the batch's target and give the mean over the
    batch. Without a metric it is accuracy for the default loss, and the loss itself for any other.
    A training batch of a single sample that is left over at the end of an epoch is skipped.

    Raises:
        DataError: there are no training or validation data.
    """

    train_data: Loader
    val_data: Loader
    test_data: Loader | None = None
    loss: Loss = cross_entropy
    metric: Metric | None = None
    metric_name: str = ""
    higher_is_better: bool = True
    split: Split = last_is_target
    """Takes a batch apart into (inputs of the model, target)."""

    def __post_init__(self) -> None:
        for name in ("train_data", "val_data"):
            if getattr(self, name) is None:
                raise DataError(f"no {name}: give a DataLoader, a Dataset, or a tuple of tensors (x, y)")
        metric = accuracy if self.metric is None and self.loss is cross_entropy else self.metric
        given = "loss" if metric is None else getattr(metric, "__name__", "metric")
        name = self.metric_name or ("metric" if given == "<lambda>" else given)
        higher = self.higher_is_better and metric is not None
        for field, value in {"metric": metric, "metric_name": name, "higher_is_better": higher}.items():
            object.__setattr__(self, field, value)

    @classmethod
    def of(
        cls,
        train_data: Any,  # noqa: ANN401
        val_data: Any,  # noqa: ANN401
        *,
        batch_size: int = 64,
        seed: int = 0,
        loss: Loss | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Self:
        """A task from what a user has.

        Args:
            train_data: a `DataLoader`, a `Dataset`, or a tuple of tensors or arrays, the target last. Unless
                it is a `DataLoader`, it is shuffled anew each epoch, by `seed` and the epoch's number alone.
            val_data: the same, never shuffled.
            batch_size: for what is no `DataLoader`.
            seed: of the shuffle.
            loss: cross-entropy unless said.
            options: the other fields of `Task`, by name; `test_data` is taken like `val_data`.

        Raises:
            DataError: data are missing, empty or of another kind.
        """
        made = {"train_data": train_data, "val_data": val_data, "test_data": options.pop("test_data", None)}
        for name, data in made.items():
            if data is not None:
                made[name] = loader_of(data, batch_size, seed if name == "train_data" else None, name)
        return cls(**made, loss=loss or cross_entropy, **options)

    def take_apart(self, batch: Any) -> tuple[tuple[Any, ...], Any]:  # noqa: ANN401
        """Inputs and target of a batch.

        Raises:
            DataError: `split` fails on the batch, or does not give two things.
        """
        try:
            inputs, target = self.split(batch)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise DataError(
                f"split must turn a batch into (inputs, target); on {describe(batch)} it failed: {error!r}"
            ) from error
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), target

    def example_inputs(self, n: int = 2) -> tuple[Tensor, ...]:
        """The first `n` training inputs, or as many as there are; more than one batch is read where needed.

        Raises:
            DataError: there are none, or they are not all tensors with a batch dimension.
        """
        parts = list[tuple[Tensor, ...]]()
        with seeded(0, torch.device("cpu")):
            for drawn in epoch_of(self.train_data, 0, "train_data"):
                parts.append(self._input_tensors(drawn.batch))
                if sum(len(part[0]) for part in parts) >= n:
                    break
        return tuple(torch.cat(tensors)[:n] for tensors in zip(*parts, strict=True))

    def _input_tensors(self, batch: object) -> tuple[Tensor, ...]:
        inputs, _ = self.take_apart(batch)
        if not inputs or not all(isinstance(x, Tensor) and x.dim() for x in inputs):
            raise DataError(f"every model input must be a tensor with a batch dimension, not {describe(inputs)}")
        return inputs
