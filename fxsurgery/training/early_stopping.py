"""Early stopping: end a training that no longer improves on validation data, with its best weights."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from fxsurgery.training.evaluate import Score
from fxsurgery.training.snapshot import put_back, tensors_of


@dataclass(eq=False)
class EarlyStopping:
    """The best weights of one training so far, and the number of validations since then."""

    patience: int | None
    """Validations without improvement after which the training ends; `None` never ends it, and keeps no weights."""
    higher_is_better: bool
    waited: int = 0
    """Validations since the best one."""
    best: Score | None = None
    step: int = 0
    """Number of steps before the best validation."""
    _tensors: Mapping[str, Tensor] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the patience is exhausted."""
        return self.patience is not None and self.waited >= self.patience

    def observe(self, score: Score, step: int, model: nn.Module) -> None:
        """Take a validation score into account, and keep the weights if it is the best."""
        if self.patience is None:
            return
        if self.best is None or self._worth(score) > self._worth(self.best):
            self.best, self.step, self.waited, self._tensors = score, step, 0, tensors_of(model)
        else:
            self.waited += 1

    def restore_best(self, model: nn.Module) -> Score | None:
        """Give `model` the weights of the best validation, in place; return its score, `None` without one."""
        if self._tensors is not None:
            put_back(model, self._tensors)
        return self.best

    def state(self) -> dict[str, Any] | None:
        """Return the state for a snapshot, plain data; `None` without a patience."""
        if self.patience is None:
            return None
        best = None if self.best is None else asdict(self.best)
        return {"waited": self.waited, "best": best, "step": self.step, "tensors": dict(self._tensors or {})}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take over the state of a snapshot."""
        if state is None:
            return
        self.waited, self.step = state["waited"], state["step"]
        if state["best"] is not None:
            self.best, self._tensors = Score(**state["best"]), state["tensors"]

    def _worth(self, score: Score) -> float:
        if math.isnan(score.metric):
            return -math.inf
        return score.metric if self.higher_is_better else -score.metric
