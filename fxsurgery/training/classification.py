"""The default loss and metric, which are those of classification, and the targets that such a loss counts.

PyTorch's cross-entropy is a mean over the targets other than `ignore_index`, each weighted by its class if there are
class weights. So the loss over several batches is

    L = sum_b W_b L_b / sum_b W_b,      W_b = sum of the weights of the targets of batch b that count,

and the accuracy is the fraction of correct predictions among the targets that count. A batch without one has weight 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.argument_names import keyword, usage

IGNORED = -100
"""Default `ignore_index` of PyTorch's losses."""


def cross_entropy(output: Any, target: Tensor) -> Tensor:  # noqa: ANN401
    """Return the cross-entropy of outputs (batch, classes, ...) and targets (batch, ...) of class indices.

    Of an output that is an object or a dict, its `logits` are used. `target` may also hold probabilities in the shape
    of the output. Targets of -100 are ignored.

    Raises:
        TypeError: the output is not a tensor and has no `logits`.
        ValueError: the problem is not classification; PyTorch would return 0 for a single class, and accept any number
            as a probability.

    Example:
        >>> float(cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1])))
        0.693147...
    """
    logits = logits_of(output)
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise ValueError(f"cross-entropy wants outputs (batch, classes, ...) of two classes at least; {_otherwise()}")
    if not isinstance(target, Tensor):
        raise TypeError(f"cross-entropy takes a tensor of class numbers as target; {_otherwise()}")
    if target.is_floating_point() and target.shape == logits.shape:
        sums = target.sum(1)
        if bool((target < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
            raise ValueError(f"cross-entropy wants class numbers, or probabilities that sum to 1; {_otherwise()}")
    return nn.functional.cross_entropy(logits, target)


def _otherwise() -> str:
    examples = usage("loss=nn.MSELoss() or loss=nn.BCEWithLogitsLoss()", "loss")
    return f"for another problem give its loss, such as {examples}"


def accuracy(output: Any, target: Tensor, ignore_index: int = IGNORED) -> Tensor:  # noqa: ANN401
    """Return the fraction of targets (batch, ...) that equal the class with the largest output (batch, classes, ...).

    Of an output that is an object or a dict, its `logits` are used. Targets of `ignore_index` are ignored; in a `Task`
    it is that of the loss. NaN if no target counts.
    """
    chosen = logits_of(output).argmax(1)
    if not isinstance(target, Tensor):
        raise TypeError(f"accuracy takes a tensor of class numbers as target; give another {keyword('metric')}")
    if target.is_floating_point():
        return (chosen == target.argmax(1)).double().mean()
    if chosen.shape != target.shape:
        raise ValueError(f"accuracy wants a target for each of {tuple(chosen.shape)}, not {tuple(target.shape)}")
    return (chosen == target)[target != ignore_index].double().mean()


def logits_of(output: Any) -> Tensor:  # noqa: ANN401
    """Return the output itself if it is a tensor, else its `logits`.

    Raises:
        TypeError: it has none.
    """
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        keys = list(map(str, output)) if isinstance(output, Mapping) else []
        part = f"output[{keys[0]!r}]" if keys else 'output["out"]'
        there = f" of {', '.join(keys)}" if keys else ""
        line = f"loss=lambda output, target: functional.cross_entropy({part}, target), and metric= likewise"
        raise TypeError(
            f"cross-entropy and accuracy take a tensor, or an output with `logits`; for any other output, "
            f"such as this one{there}, give a loss and a metric that select their part: {usage(line, 'loss', 'metric')}"
        )
    return found


@dataclass(frozen=True)
class Counting:
    """The targets that a classification loss counts, and their weights."""

    ignore_index: int = IGNORED
    class_weights: Tensor | None = None

    def loss_weight(self, target: object) -> float | None:
        """Return the divisor of the mean over the targets of a batch; `None` if they are not classes."""
        if not isinstance(target, Tensor):
            return None
        if target.is_floating_point():
            return self.targets(target)
        counted = target[target != self.ignore_index]
        if self.class_weights is None:
            return float(counted.numel())
        return float(self.class_weights.to(counted.device)[counted.long()].sum())

    def targets(self, target: object) -> float | None:
        """Return the number of targets that count; probabilities (batch, classes, ...) have one for each position."""
        if not isinstance(target, Tensor):
            return None
        if target.is_floating_point():
            return target.numel() / (target.shape[1] if target.dim() > 1 else max(target.numel(), 1))
        return float((target != self.ignore_index).sum())


def counting_of(loss: object) -> Counting | None:
    """Return the targets that a loss counts; `None` for one that is not a mean over classes as in PyTorch.

    A user's loss with an attribute `ignore_index` is treated as such a mean.
    """
    options = dict[str, Any]()
    while isinstance(loss, partial):
        options = {**loss.keywords, **options}
        loss = loss.func
    if loss is cross_entropy:
        return Counting()
    if loss in {nn.functional.cross_entropy, nn.functional.nll_loss}:
        found = Counting(options.get("ignore_index", IGNORED), options.get("weight"))
        return found if options.get("reduction", "mean") == "mean" else None
    ignored, is_mean = getattr(loss, "ignore_index", None), getattr(loss, "reduction", "mean") == "mean"
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and is_mean:
        return Counting(loss.ignore_index, loss.weight)
    return Counting(ignored) if isinstance(ignored, int) and is_mean else None
