"""The paper's loss of the architecture stage (Guo et al., Eq. 4).

L0 + lambda * sum over gates of sigmoid(delta * s)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxsurgery.nn.gates import GateVector
from fxsurgery.training import Batch, Terms


@dataclass(frozen=True, eq=False)
class GatePenalty:
    """An objective: the task's loss plus the cost of open gates."""

    vector: GateVector
    weight: float
    """Lambda of the paper."""

    def __call__(self, model: nn.Module, batch: Batch, /) -> tuple[Tensor, Terms]:
        """Return the loss and its terms, `task` and `penalty`."""
        task = batch.loss(batch.predict(model, keep=False))
        gates = torch.sigmoid(self.vector.sharpness * self.vector.logits)
        penalty = self.weight * gates.sum()
        return task + penalty, {"task": task, "penalty": penalty}
