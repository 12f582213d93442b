"""What is to be learned: data, loss and metric."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
from fxsurgery.seeding import seeded
from fxsurgery.training.batches import Loader, describe, describe_inputs, epoch_of, loader_of

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Metric: TypeAlias = Callable[[Any, Any], float | Tensor]
Split: TypeAlias = Callable[[Any], tuple[Any, Any]]


TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys that hold the target of a batch that is a dict."""


def by_convention(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Split a tuple or list before its last; a dict at its one key of `TARGETS`.

    The inputs are a tuple, given to the model by position, or a dict, given by name.

    Raises:
        DataError: it is anything else.
    """
    keys = [key for key in TARGETS if key in batch] if isinstance(batch, Mapping) else []
    if len(keys) == 1 < len(batch):
        return {key: value for key, value in batch.items() if key != keys[0]}, batch[keys[0]]
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise DataError(
            f"cannot tell inputs from target in a batch that is {describe(batch)}; "
            "give split=lambda batch: ((batch['image'],), batch['class']) or the like"
        )
    inputs = tuple(batch[:-1])
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs, batch[-1]


def cross_entropy(output: Any, target: Tensor) -> Tensor:  # noqa: ANN401
    """The loss of classification: `output` (batch, classes, ...), `target` (batch, ...) of class numbers.

    An output that is an object or a dict is taken by its `logits`.
    """
    return nn.functional.cross_entropy(_logits(output), target)


def accuracy(output: Any, target: Tensor) -> Tensor:  # noqa: ANN401
    """Share of `target` (batch, ...) that the largest of `output` (batch, classes, ...) hits; or of its `logits`."""
    classes = target.argmax(1) if target.is_floating_point() else target
    return (_logits(output).argmax(1) == classes).double().mean()


def _logits(output: Any) -> Tensor:  # noqa: ANN401
    found: Tensor = output["logits"] if isinstance(output, Mapping) else getattr(output, "logits", output)
    return found


@dataclass(frozen=True, eq=False)
class Task:
    """Data, loss and metric. `Task.of` makes one from tensors and data sets, too.

    Both `loss` and `metric` take the model's output and the batch's target and give the mean over the
    batch. Without a metric it is accuracy for the default loss, and the loss itself for any other.
    A training batch of a single sample that is left over at the end of an epoch is skipped.

    A batch is `(input, ..., target)`, `(dict, target)`, or a dict with a key `labels`, `label`, `targets`, `target` or
    `y`; `split` takes any other apart. The inputs in a dict are given to the model by name.

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
    split: Split = by_convention
    """Takes a batch apart into (inputs of the model, target); a tuple of inputs goes in by position, a dict by name."""

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
            train_data: a `DataLoader`, a `Dataset`, or tensors or arrays in a tuple, the target last, or in a dict.
                Unless it is a `DataLoader`, it is shuffled anew each epoch, by `seed` and the epoch's number alone.
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

    def take_apart(self, batch: Any) -> tuple[Inputs, Any]:  # noqa: ANN401
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
        if isinstance(inputs, Inputs):
            return inputs, target
        if isinstance(inputs, Mapping):
            return Inputs((), dict(inputs)), target
        return Inputs(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), target

    def examples(self, n: int = 2) -> Inputs:
        """The first `n` training inputs; fewer where there are no more, or where the next batch has other sizes.

        Raises:
            DataError: there are none, or no tensor among them has a batch dimension.
        """
        found: Inputs | None = None
        with seeded(0, torch.device("cpu")):
            for drawn in epoch_of(self.train_data, 0, "train_data"):
                inputs = self._with_batch(drawn.batch)
                try:
                    found = inputs if found is None else found.joined(inputs)
                except ValueError:
                    break
                if (found.batch or 0) >= n:
                    break
        if found is None:
            raise DataError("train_data is empty: it gives no batch")
        return found.resized(min(n, found.batch or 0))

    def _with_batch(self, batch: object) -> Inputs:
        inputs, _ = self.take_apart(batch)
        if not inputs.batch:
            raise DataError(f"no tensor among the model's inputs has a batch dimension: {describe_inputs(inputs)}")
        return inputs
