"""The task that networks are trained for: data, loss and metric."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

import torch
from torch import nn
from torch.utils.data import DataLoader

from fxsurgery.argument_names import named
from fxsurgery.batch_layout import Statement, as_stated, by_target, is_ambiguous, sample_count
from fxsurgery.calls import checked_construction
from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
from fxsurgery.option_text import class_fault
from fxsurgery.option_types import Count, Seed, check_fields, checked
from fxsurgery.training.accumulating import Accumulating
from fxsurgery.training.array_loader import ArrayLoader
from fxsurgery.training.array_loader import samples as row_count
from fxsurgery.training.batch_split import by_convention
from fxsurgery.training.batches import Loader, describe, describe_inputs, epoch_of, loader_of
from fxsurgery.training.classification import Counting, accuracy, counting_of, cross_entropy
from fxsurgery.training.metrics import is_better_when_higher, metric_named, name_of
from fxsurgery.training.random_state import repeatable

Loss: TypeAlias = Callable[[Any, Any], Any]
"""`loss(output, target)`: a scalar tensor, or several in a dict or a tuple, which are summed."""
Metric: TypeAlias = Callable[[Any, Any], Any] | Accumulating
"""`metric(output, target)`: a number, or several in a dict; or an object with `update` and `compute`."""
Split: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""Takes a batch apart into (inputs of the model, target)."""


@checked_construction
@dataclass(frozen=True, eq=False)
class Task:
    """Data, loss and metric. `Task.of` builds one from tensors and datasets, too.

    `loss(output, target)` returns the mean over the batch; or several such terms in a dict or a tuple, which are summed
    and named in errors. A loss that is a module is used on the device of the outputs.

    `metric(output, target)` returns a number, or several in a dict, of which `select` names the one to compare. A
    metric that is not a mean over batches is an object with `update(output, target)` and `compute()`; each evaluation
    uses a copy of it, reset if it has `reset()`. A name such as `top5` or `MulticlassF1Score` is a metric, too. The
    default is accuracy for the default loss, and the loss itself for any other. Targets that the default loss, or an
    `nn.CrossEntropyLoss` or `nn.NLLLoss`, ignores (`ignore_index`) count for neither loss nor accuracy.

    A batch is `(input, ..., target)`, `(dict, target)`, or a dict with a key `labels`, `label`, `targets`, `target` or
    `y`; any other is split by `split`. The inputs in a dict are passed to the model by name. The target may be
    anything, also `None`. A training batch of a single sample that is left over at the end of an epoch is skipped.

    Raises:
        DataError: training or validation data are missing, or the loss or the metric cannot be called.

    Example:
        >>> x, y = torch.randn(32, 3), torch.arange(32) % 4
        >>> task = Task.of((x, y), (x, y), batch_size=8, metric="top2")
        >>> task.metric_name, task.higher_is_better
        ('top2', True)
    """

    train_data: Loader
    val_data: Loader
    test_data: Loader | None = None
    loss: Loss = cross_entropy
    metric: Metric | str | None = None
    """A function, an object with `update` and `compute`, or a name such as `accuracy`, `top5`, `mse`, `r2` or that of a
    torchmetrics class."""
    metric_name: str = ""
    """Name of the metric in reports; by default its own."""
    higher_is_better: bool | None = None
    """Direction of a metric that has no attribute of this name; higher by default. Of a loss, lower is better."""
    split: Split = by_convention
    """Splits a batch into (inputs of the model, target); a tuple of inputs is passed by position, a dict by name."""
    select: str | None = None
    """Name of the number to compare, of a metric that gives several; the first by default."""
    batch_dims: Statement = None
    """Batch dim of the model's inputs, as for `capture`: `batch_dims=1`; or `{0: None, 1: 0}`, by position, or by name
    if the batch is a dict. By default inferred: dim 0 of the first input that is as long as the target."""
    val_batches: Count | None = None
    """Number of validation batches to score; by default all, so the loader must end."""
    _moved: dict[tuple[str, torch.device], Any] = field(default_factory=dict, init=False, repr=False)
    """Copies of a loss and a metric that are modules with tensors, by device."""

    def __post_init__(self) -> None:
        for name in ("train_data", "val_data"):
            if getattr(self, name) is None:
                raise DataError(f"Task needs {name}=: give a DataLoader, a Dataset, or a tuple of tensors (x, y)")
        for name in ("train_data", "val_data", "test_data"):
            if not isinstance(data := getattr(self, name), DataLoader | None):
                raise DataError(f"{name} of a Task is a DataLoader, not {describe(data)}; make one with Task.of")
        _require_callable("loss", self.loss)
        metric = self._resolved_metric()
        check_fields(self, DataError)
        name = self.metric_name or self.select or (self.metric if isinstance(self.metric, str) else name_of(metric))
        is_higher_better = is_better_when_higher(metric, stated=self.higher_is_better, select=self.select)
        resolved = {"metric": metric, "metric_name": name, "higher_is_better": is_higher_better}
        for field_name, value in resolved.items():
            object.__setattr__(self, field_name, value)

    def _resolved_metric(self) -> Any:  # noqa: ANN401 -- a function, or an object that accumulates
        if isinstance(self.metric, str):
            return metric_named(self.metric, self.counting)
        metric = accuracy if self.metric is None and self.loss is cross_entropy else self.metric
        if isinstance(metric, type) or not isinstance(metric, Accumulating | None):
            _require_callable("metric", metric)
        return metric

    @classmethod
    @checked(DataError)
    def of(  # noqa: PLR0913 -- the fields of a task, each by name
        cls,
        train_data: Any,  # noqa: ANN401
        val_data: Any,  # noqa: ANN401
        *,
        test_data: Any = None,  # noqa: ANN401
        batch_size: Count = 64,
        seed: Seed = 0,
        loss: Any = None,  # noqa: ANN401 -- the fields of `Task` say what it must be
        metric: Any = None,  # noqa: ANN401 -- as above
        metric_name: str = "",
        higher_is_better: bool | None = None,
        split: Split = by_convention,
        select: str | None = None,
        batch_dims: Statement = None,
        val_batches: Count | None = None,
    ) -> Self:
        """Return a task from tensors, arrays, data sets or loaders.

        Args:
            train_data: a `DataLoader`, a `Dataset`, or tensors or arrays in a tuple, the target last, or in a dict.
                Unless it is a `DataLoader`, it is shuffled every epoch, in an order that depends only on `seed` and the
                number of the epoch.
            val_data: validation data in the same forms, never shuffled.
            test_data: test data in the same forms, never shuffled.
            batch_size: batch size for data that are not a `DataLoader`.
            seed: seed of the shuffling.
            loss: `loss(output, target)`; cross-entropy by default.
            metric: as the field of `Task`.
            metric_name: as the field of `Task`.
            higher_is_better: as the field of `Task`.
            split: as the field of `Task`.
            select: as the field of `Task`.
            batch_dims: as the field of `Task`.
            val_batches: as the field of `Task`.

        Raises:
            DataError: data are missing, empty or of another kind.

        Example:
            >>> images, labels = torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)
            >>> len(Task.of((images, labels), (images, labels), batch_size=4).train_data)
            2
        """
        made = {"train_data": train_data, "val_data": val_data, "test_data": test_data}
        for name, data in made.items():
            if data is not None:
                made[name] = loader_of(data, batch_size, seed if name == "train_data" else None, name)
        return cls(
            **made, loss=cross_entropy if loss is None else loss, metric=metric, metric_name=metric_name,
            higher_is_better=higher_is_better, split=split, select=select, batch_dims=batch_dims,
            val_batches=val_batches,
        )  # fmt: skip

    def on(self, which: str, device: torch.device) -> Any:  # noqa: ANN401
        """Return the `loss` or the `metric`; of a module with tensors, a frozen copy on `device`."""
        function = getattr(self, which)
        if not isinstance(function, nn.Module) or not [*function.parameters(), *function.buffers()]:
            return function
        if (which, device) not in self._moved:
            self._moved[which, device] = copy.deepcopy(function).to(device).requires_grad_(requires_grad=False)
        return self._moved[which, device]

    def fresh_metric(self, device: torch.device) -> Accumulating | None:
        """Return a reset copy of an accumulating metric on `device`; `None` if the metric does not accumulate."""
        if not isinstance(self.metric, Accumulating):
            return None
        fresh: Any = copy.deepcopy(self.metric)
        if callable(reset := getattr(fresh, "reset", None)):
            reset()
        moved: Accumulating = fresh.to(device) if callable(getattr(fresh, "to", None)) else fresh
        return moved

    def selected(self, figures: Mapping[str, float]) -> float:
        """Return the number to compare.

        Raises:
            DataError: there is no number named `select`.
        """
        name = self.select or next(iter(figures), "")
        if name not in figures:
            raise DataError(f"{self.metric_name} gives no number {name!r}; it gives: {', '.join(figures) or 'none'}")
        return figures[name]

    @property
    def counting(self) -> Counting | None:
        """The targets that the loss counts; `None` if the loss is not a mean over classes."""
        return counting_of(self.loss)

    def samples(self, batch: Any) -> int:  # noqa: ANN401
        """Return the number of samples in a batch; see `count`."""
        return self.count(*self.take_apart(batch))

    def counter(self, loader: Loader) -> Callable[[Any], int]:
        """Return the function that counts the samples in a batch of `loader`: `samples`, or a faster one."""
        by_rows = isinstance(loader, ArrayLoader) and self.split is by_convention and self.batch_dims is None
        return row_count if by_rows else self.samples

    def count(self, inputs: Inputs, target: Any, output: Any = None) -> int:  # noqa: ANN401
        """Return the number of samples in a batch, from the inputs, or the target if the output is as long."""
        if self.batch_dims is not None and inputs.batch is not None:
            return inputs.batch
        return sample_count(inputs, target, output)

    def take_apart(self, batch: Any) -> tuple[Inputs, Any]:  # noqa: ANN401
        """Split a batch into inputs and target.

        Raises:
            DataError: `split` fails on the batch, or does not return a pair.
        """
        try:
            inputs, target = self.split(batch)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise DataError(
                f"split must turn a batch into (inputs, target); on {describe(batch)} it failed: {error!r}"
            ) from error
        if not isinstance(inputs, Inputs):
            named = isinstance(inputs, Mapping)
            several = isinstance(inputs, tuple | list)
            inputs = Inputs((), dict(inputs)) if named else Inputs(tuple(inputs) if several else (inputs,))
        if self.batch_dims is not None:
            return as_stated(inputs, self.batch_dims), target
        return by_target(inputs, target), target

    def examples(self, n: int = 2) -> Inputs:
        """Return the first `n` training inputs; fewer if the data end, or the next batch has other sizes.

        Raises:
            DataError: there are no inputs, or no tensor among them has a batch dimension.
        """
        found: Inputs | None = None
        with repeatable(self.train_data, 0, torch.device("cpu")) as source:
            for drawn in epoch_of(source, 0, "train_data", self.samples):
                inputs = self._with_batch(drawn.batch)
                try:
                    found = inputs if found is None else found.joined(inputs)
                except ValueError:
                    break
                if (found.batch or 0) >= n:
                    break
        if found is None:
            raise DataError(
                f"{named('train_data')} is empty: it gives no batch; give at least one, or set drop_last=False"
            )
        return found.resized(min(n, found.batch or 0))

    def _with_batch(self, batch: object) -> Inputs:
        inputs, _ = self.take_apart(batch)
        if not inputs.batch and self.batch_dims is None:
            raise DataError(
                f"no tensor among the model's inputs has a batch dimension: {describe_inputs(inputs)}; pass batch_dims="
            )
        return inputs

    def capture_examples(self) -> Inputs:
        """Return two training inputs to capture a model on; the whole first batch if it cannot be divided.

        A batch cannot be divided if its samples have no rows of their own, or if its sizes do not determine the batch
        dim.

        Raises:
            DataError: there are no inputs, or no tensor among them has a batch dimension.
        """
        batch = self.first_batch()
        inputs, target = self._with_batch(batch), self.take_apart(batch)[1]
        if self.batch_dims is None and is_ambiguous(inputs, target):
            return replace(inputs, batch_dims=None)
        return self.examples() if inputs.is_divisible else inputs

    def first_batch(self) -> Any:  # noqa: ANN401
        """Return the first training batch.

        Raises:
            DataError: there is no batch.
        """
        with repeatable(self.train_data, 0, torch.device("cpu")) as source:
            return next(epoch_of(source, 0, "train_data", self.samples)).batch


def _require_callable(what: str, given: object) -> None:
    if isinstance(given, type):
        raise DataError(class_fault(what, given))
    if not callable(given):
        raise DataError(f"{what} must be a function or a module, {what}(output, target), not {describe(given)}")
