"""A metric of torchmetrics by the name of its class, built from the first batch that it sees.

The batch shows the number of classes, and for a name such as `F1Score` whether the problem is binary, multiclass or
multilabel. torchmetrics is imported when such a metric is first named.
"""

import inspect
from collections.abc import Collection
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fxsurgery.argument_names import assigned
from fxsurgery.errors import DataError, reason_of
from fxsurgery.extras import requires
from fxsurgery.training.classification import logits_of

Kind: TypeAlias = Literal["Binary", "Multiclass", "Multilabel"]
STATE_DIRECTION = "build the data with Task.of(train, val, metric=..., higher_is_better=False)"
_KINDS: tuple[Kind, ...] = ("Binary", "Multiclass", "Multilabel")
_INSTANCE = "pass an instance with its arguments, such as torchmetrics.classification.MulticlassFBetaScore(2.0, 10)"


class TorchMetric:
    """A torchmetrics metric that is built from the first batch.

    Example:
        >>> metric = TorchMetric("MeanSquaredError")
        >>> metric.update(torch.zeros(4, 1), torch.ones(4, 1))
        >>> float(metric.compute()), metric.higher_is_better
        (1.0, False)
    """

    def __init__(self, name: str, ignore_index: int | None = None) -> None:
        """Find the class.

        Args:
            name: class name; without `Binary`, `Multiclass` or `Multilabel` the data decide among the three.
            ignore_index: target that does not count.

        Raises:
            DataError: torchmetrics has no such class, or the class does not state whether a higher value is better.
            MissingExtraError: torchmetrics is not installed.
        """
        self.name, self.ignore_index = name, ignore_index
        self._classes = _classes_of(name)
        directions = {found.higher_is_better for found in self._classes.values()}
        if len(directions) > 1 or not directions <= {True, False}:
            raise DataError(
                f"{assigned('metric', name)}: torchmetrics does not state whether a higher value is better; "
                f"{STATE_DIRECTION}"
            )
        self.higher_is_better: bool = directions.pop()
        self._device: torch.device | None = None
        self._metric: Any = None

    def to(self, device: torch.device) -> "TorchMetric":
        """Return this metric, which then accumulates on `device`."""
        self._device = device
        return self

    def update(self, output: Any, target: Any, /) -> None:  # noqa: ANN401
        """Add a batch.

        Raises:
            DataError: the metric needs arguments that the data do not show.
        """
        values = logits_of(output)
        kind = self._kind(values, target)
        if self._metric is None:
            self._metric = self._built(kind, values)
        if kind is not None and isinstance(target, Tensor):
            values, target = _as_classes(kind, values, target)
        self._metric.update(values, target)

    def compute(self) -> Any:  # noqa: ANN401
        """Return the value over all batches."""
        return self._metric.compute()

    def _kind(self, values: Tensor, target: object) -> Kind | None:
        """Return the classification problem; `None` for a metric of another problem."""
        if "" in self._classes:
            return next((kind for kind in _KINDS if self.name.startswith(kind)), None)
        if values.dim() < 2 or values.shape[1] == 1:
            return "Binary"
        is_multilabel = isinstance(target, Tensor) and target.shape == values.shape and self.ignore_index is None
        return "Multilabel" if is_multilabel else "Multiclass"

    def _built(self, kind: Kind | None, values: Tensor) -> Any:  # noqa: ANN401 -- a torchmetrics.Metric
        found = self._classes.get("") or self._classes.get(kind or "")
        if found is None:
            raise DataError(f"{assigned('metric', self.name)}: torchmetrics has no {kind}{self.name}; {_INSTANCE}")
        parameters = inspect.signature(found.__init__).parameters
        arguments: dict[str, Any] = {"sync_on_compute": False}  # each process scores all of the data
        for name in {"num_classes", "num_labels"} & parameters.keys():
            if values.dim() < 2:
                shape = tuple(values.shape)
                raise DataError(
                    f"{assigned('metric', self.name)}: {name} cannot be inferred from an output of shape {shape}; "
                    f"{_INSTANCE}"
                )
            arguments[name] = values.shape[1]
        if "ignore_index" in parameters and self.ignore_index is not None:
            arguments["ignore_index"] = self.ignore_index
        try:
            return found(**arguments).to(self._device or values.device)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{assigned('metric', self.name)} needs arguments: {reason_of(error)}; {_INSTANCE}"
            ) from error


def is_installed() -> bool:
    """Return whether torchmetrics can be imported."""
    return find_spec("torchmetrics") is not None


def names() -> Collection[str]:
    """Return the names that a `TorchMetric` can have, also those whose problem the data decide.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """
    found = {name for module in _modules() for name in dir(module) if _is_metric(getattr(module, name))}
    return found | {name.removeprefix(kind) for name in found for kind in _KINDS}


def _classes_of(name: str) -> dict[str, Any]:
    """Return the classes of a name by their prefix: one without, or one for each classification problem.

    Raises:
        DataError: torchmetrics has no such class.
        MissingExtraError: torchmetrics is not installed.
    """
    found = {prefix: _class_named(prefix + name) for prefix in ("", *_KINDS)}
    alone = found.pop("")
    if alone is not None and "task" not in inspect.signature(alone.__new__).parameters:
        return {"": alone}
    classes = {prefix: one for prefix, one in found.items() if one is not None}
    if not classes:
        raise DataError(
            f"{assigned('metric', name)}: torchmetrics has no such metric; see the list of metrics in its docs"
        )
    return classes


def _class_named(name: str) -> Any | None:  # noqa: ANN401 -- a class of torchmetrics
    return next((one for module in _modules() if _is_metric(one := getattr(module, name, None))), None)


def _is_metric(value: object) -> bool:
    return isinstance(value, type) and hasattr(value, "higher_is_better") and callable(getattr(value, "update", None))


def _as_classes(kind: Kind, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and targets in the shapes and types that torchmetrics takes."""
    if kind == "Multiclass" and target.is_floating_point() and target.shape == values.shape:
        return values, target.argmax(1)
    if kind == "Binary" and values.dim() > 1 and values.shape[1] == 1:
        values, target = values.squeeze(1), target.squeeze(1) if target.dim() == values.dim() else target
    return values, target.long() if target.is_floating_point() else target


def _modules() -> tuple[ModuleType, ...]:
    """Import torchmetrics.

    Raises:
        MissingExtraError: it is not installed.
    """
    with requires("torchmetrics", "a metric of this name"):
        import torchmetrics.classification  # noqa: PLC0415 -- an extra
        import torchmetrics.regression  # noqa: PLC0415
        import torchmetrics.segmentation  # noqa: PLC0415
    return torchmetrics, torchmetrics.classification, torchmetrics.regression, torchmetrics.segmentation
