"""Metrics by name: built-in ones, and those of torchmetrics; and whether a higher value is better.

Built-in metrics accumulate over a whole split, so they do not depend on the batch size. Whether higher is better
follows from the metric: a metric that leaves it open is an error, never a guess.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fxsurgery.argument_names import assigned
from fxsurgery.errors import DataError
from fxsurgery.training.classification import IGNORED, Counting, accuracy, logits_of
from fxsurgery.training.torch_metric import STATE_DIRECTION, TorchMetric, is_installed, names

PREFIX = "torchmetrics:"
"""Marks a name as one of torchmetrics."""
ALIASES = {
    "f1": "F1Score",
    "precision": "Precision",
    "recall": "Recall",
    "auroc": "AUROC",
    "iou": "JaccardIndex",
    "average_precision": "AveragePrecision",
}
"""Short names of torchmetrics metrics."""


class TopK:
    """Fraction of targets that are among the `k` classes with the largest outputs."""

    higher_is_better = True

    def __init__(self, k: int, ignore_index: int = IGNORED) -> None:
        self.k, self.ignore_index = k, ignore_index
        self._hits, self._count = 0, 0

    def update(self, output: Any, target: Tensor, /) -> None:  # noqa: ANN401
        """Add a batch: outputs (batch, classes, ...), targets (batch, ...) of class indices, or probabilities.

        Raises:
            ValueError: there are fewer than `k` classes, or the shapes do not match.
        """
        logits = logits_of(output)
        if logits.dim() < 2 or logits.shape[1] < self.k:
            raise ValueError(f"top-{self.k} accuracy needs outputs (batch, classes, ...) of at least {self.k} classes")
        classes = target.argmax(1) if target.is_floating_point() else target
        best = logits.topk(self.k, dim=1).indices
        if classes.shape != best[:, 0].shape:
            raise ValueError(f"top-{self.k} accuracy needs targets {tuple(best[:, 0].shape)}")
        counted = classes != self.ignore_index
        self._hits += int(((best == classes.unsqueeze(1)).any(1) & counted).sum())
        self._count += int(counted.sum())

    def compute(self) -> float:
        """Return the fraction; NaN if no target counts."""
        return self._hits / self._count if self._count else float("nan")


class ElementwiseError:
    """Mean of an error over all entries of the outputs."""

    higher_is_better = False

    def __init__(self, kind: Literal["mse", "rmse", "mae"]) -> None:
        self.kind = kind
        self._sum, self._count = 0.0, 0

    def update(self, output: Any, target: Tensor, /) -> None:  # noqa: ANN401
        """Add a batch of outputs and targets of the same shape.

        Raises:
            ValueError: the shapes differ.
        """
        values, wanted = _same_shape(self.kind, output, target)
        difference = values - wanted
        self._sum += float((difference.abs() if self.kind == "mae" else difference.square()).sum())
        self._count += difference.numel()

    def compute(self) -> float:
        """Return the mean; its square root for `rmse`."""
        mean = self._sum / self._count if self._count else float("nan")
        return mean**0.5 if self.kind == "rmse" else mean


class R2:
    """Coefficient of determination, `1 - sum (y - z)^2 / sum (y - mean y)^2`, averaged over the output values."""

    higher_is_better = True

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        """Sums of squared residuals, targets and squared targets, (3, values)."""
        self._shift: Tensor | None = None
        """The first target, which the sums are taken relative to, so that a large mean cancels."""
        self._count = 0

    def update(self, output: Any, target: Tensor, /) -> None:  # noqa: ANN401
        """Add a batch of outputs and targets of the same shape, (batch, ...).

        Raises:
            ValueError: the shapes differ, or there is no batch dimension.
        """
        values, wanted = _same_shape("r2", output, target)
        if not values.dim():
            raise ValueError("r2 needs a batch dimension")
        values, wanted = values.flatten(1) if values.dim() > 1 else values[:, None], wanted.reshape(len(wanted), -1)
        if self._shift is None:
            self._shift = wanted[0]
        moved = wanted - self._shift
        sums = torch.stack([(wanted - values).square().sum(0), moved.sum(0), moved.square().sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._count += len(values)

    def compute(self) -> float:
        """Return the mean over the output values; NaN for a target that is constant."""
        if self._sums is None:
            return float("nan")
        residual, total, squares = self._sums
        return float((1 - residual / (squares - total.square() / self._count)).mean())


BUILT_IN: Mapping[str, Callable[[int], Any]] = {
    "accuracy": lambda _: accuracy,
    "top5": lambda ignored: TopK(5, ignored),
    "mse": lambda _: ElementwiseError("mse"),
    "rmse": lambda _: ElementwiseError("rmse"),
    "mae": lambda _: ElementwiseError("mae"),
    "r2": lambda _: R2(),
}
"""How each built-in metric is made, given the target that does not count."""


def metric_named(name: str, counting: Counting | None) -> Any:  # noqa: ANN401 -- a `Metric` of `Task`
    """Return the metric of a name.

    Args:
        name: `accuracy`, `top5` (or `top3`, ...), `mse`, `rmse`, `mae`, `r2`, or the name of a torchmetrics class.
        counting: which targets the loss counts; `None` if the loss is not a mean over classes.

    Raises:
        DataError: there is no such metric; the message has the nearest names.
    """
    bare = name.removeprefix(PREFIX).strip()
    short = bare.lower().replace("-", "_")
    ignored = None if counting is None else counting.ignore_index
    if bare == name:
        if short in BUILT_IN:
            return BUILT_IN[short](IGNORED if ignored is None else ignored)
        if (top := re.fullmatch(r"top_?([1-9]\d{0,3})", short)) is not None:
            return TopK(int(top[1]), IGNORED if ignored is None else ignored)
    _require_known(bare, short, name)
    return TorchMetric(ALIASES.get(short, bare), ignored)


def is_better_when_higher(metric: object, *, stated: bool | None, select: str | None) -> bool:
    """Return the direction of a metric: lower if the metric or the user states so; that of a loss is lower.

    Args:
        metric: a function or an object; `None` is the loss.
        stated: what the user states; `None` if nothing.
        select: of several values, the name of the one that counts.

    Raises:
        DataError: neither the user nor the metric states it, where the metric should.
    """
    if metric is None or stated is False:
        return False
    own = getattr(metric, "higher_is_better", None) if stated else direction_of(metric, select)
    return own is not False


def direction_of(metric: object, select: str | None) -> bool | None:
    """Return whether a higher value of a metric is better; `None` if the metric does not state it.

    Args:
        metric: what a user passes.
        select: of several values, the name of the one that counts.

    Raises:
        DataError: the metric states that it has no direction.
    """
    while isinstance(metric, partial):
        metric = metric.func
    if isinstance(metric, nn.ModuleDict):  # a torchmetrics.MetricCollection
        members = dict(metric.items())
        metric = members.get(select) if select else next(iter(members.values()), None)
    if _is_loss(metric):
        return False
    stated: object = getattr(metric, "higher_is_better", "not stated")
    if stated is None:
        raise DataError(
            f"metric {type(metric).__name__}: its higher_is_better is None, so it is unknown which network is better; "
            f"{STATE_DIRECTION}"
        )
    return stated if isinstance(stated, bool) else None


def _is_loss(metric: object) -> bool:
    """Return whether a metric is a loss or an error function of a library, where lower is better."""
    if isinstance(metric, nn.Module):
        return type(metric).__module__ == "torch.nn.modules.loss"
    library = str(getattr(metric, "__module__", "")).partition(".")[0]
    name = str(getattr(metric, "__name__", ""))
    return library in {"torch", "torchmetrics", "sklearn"} and bool(re.search(r"(loss|error|cross_entropy)$", name))


def _same_shape(name: str, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    if not isinstance(output, Tensor) or output.shape != target.shape:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"{name} needs outputs and targets of the same shape, not {shape} and {tuple(target.shape)}")
    return output.double(), target.double()


def _require_known(bare: str, short: str, name: str) -> None:
    """Refuse a name that neither this package nor torchmetrics has.

    Raises:
        DataError: it has the nearest names.
    """
    theirs = names() if is_installed() or bare[:1].isupper() else ()
    if short in ALIASES or bare in theirs:
        return
    known = {one.lower(): one for one in (*theirs, *ALIASES, *BUILT_IN)}
    near = [known[one] for one in difflib.get_close_matches(bare.lower(), known, 3, 0.6)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"take one of {', '.join(BUILT_IN)}"
    raise DataError(f"{assigned('metric', name)}: there is no metric of this name; {hint}")


def name_of(metric: object) -> str:
    """Return the name of a metric, or that of its class; `metric` for a lambda, `loss` for `None`."""
    if metric is None:
        return "loss"
    while isinstance(metric, partial):
        metric = metric.func
    name: str = getattr(metric, "__name__", type(metric).__name__)
    return "metric" if name == "<lambda>" else name
