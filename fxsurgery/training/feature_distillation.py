"""Learning to compute a teacher's inner feature maps on the way to the task (Romero et al. 2015, FitNets, Eq. 3).

With v_i a feature map of the student, t_i that of the teacher which it is to learn, and d a distance,

    L = L_task + weight * mean over i of d(v_i, t_i),        d = mean square unless another is given.

The teacher runs in eval mode, without gradients and in the precision of the training; distances are in float32.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxsurgery.calls import checked_construction
from fxsurgery.errors import TrainingError, reason_of
from fxsurgery.program import Program
from fxsurgery.taps import tapped
from fxsurgery.training.objective import TASK, Batch, Terms


@checked_construction
@dataclass(eq=False)
class FeatureDistillation:
    """An objective: the task's loss, and how far inner feature maps are from those of a teacher.

    Example:
        >>> from torch import nn
        >>> from fxsurgery import capture
        >>> from fxsurgery.training import Hooks
        >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> teacher = capture(layers.eval(), torch.ones(2, 4))
        >>> hooks = Hooks(objective=FeatureDistillation(teacher, {"_1": "_1"}, weight=0.5))
    """

    teacher: Program
    """It is read only."""
    pairs: Mapping[str, str]
    """By node of the student, the node of the teacher whose value it is to learn."""
    weight: float | Callable[[float], float] = 1.0
    """Weight of the features; or a schedule of it by the part of the training that is over, from 0 to 1."""
    distance: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss
    """Of a student's feature map and the teacher's, a scalar: a mean over the samples."""
    _student: tuple[nn.Module, fx.GraphModule] | None = field(init=False, default=None)
    _views: dict[torch.device, fx.GraphModule] = field(init=False, default_factory=dict)

    def __call__(self, model: nn.Module, batch: Batch, /) -> tuple[Tensor, Terms]:
        """Return the loss and its terms, `task` and `features`.

        Raises:
            SpecError: a node to tap does not exist.
            TrainingError: the model is no graph, or the distance cannot take two feature maps.
        """
        with torch.no_grad():
            _, wanted = batch.predict(self._teacher_on(batch.device))
        output, found = batch.predict(self._tapped(model))
        task = batch.loss(output)
        features = torch.stack([self._distance(own, found, wanted) for own in self.pairs]).mean()
        return task + self._weight(batch) * features, {TASK: task, "features": features}

    def _weight(self, batch: Batch) -> float:
        return self.weight((batch.step + 0.5) / batch.steps) if callable(self.weight) else self.weight

    def _distance(self, own: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Tensor:
        other = self.pairs[own]
        try:
            return self.distance(found[own], wanted[other])
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            shapes = [getattr(x, "shape", type(x).__name__) for x in (found[own], wanted[other])]
            raise TrainingError(
                f"the distance cannot take node {own!r} of the student, {shapes[0]}, and node {other!r} of the "
                f"teacher, {shapes[1]}: {reason_of(error)}; pair other nodes, or pass a distance= that adapts them"
            ) from error

    def _tapped(self, model: nn.Module) -> fx.GraphModule:
        if self._student is None or self._student[0] is not model:
            if not isinstance(model, fx.GraphModule):
                raise TrainingError(
                    f"features of a {type(model).__name__} cannot be read; train a Program.trainable_copy()"
                )
            self._student = model, tapped(model, list(self.pairs))
        return self._student[1]

    def _teacher_on(self, device: torch.device) -> fx.GraphModule:
        """The teacher's taps; on another device than its own a copy."""
        if device not in self._views:
            view = self.teacher.tapped(list(self.pairs.values()))
            at_home = all(tensor.device == device for tensor in (*view.parameters(), *view.buffers()))
            self._views[device] = view if at_home else copy.deepcopy(view).to(device)
        return self._views[device]
