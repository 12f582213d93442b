"""Distill inner feature maps of a teacher while training on the task (Romero et al. 2015, FitNets, Eq. 3).

With v_i a feature map of the student, t_i the feature map of the teacher that it learns, and d a distance,

    L = L_task + weight * mean over i of d(v_i, t_i),        d = mean squared error by default.

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
    """An objective: the task's loss plus the distance of inner feature maps to those of a teacher.

    Example:
        >>> from torch import nn
        >>> from fxsurgery import capture
        >>> from fxsurgery.training import Hooks
        >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> teacher = capture(layers.eval(), torch.ones(2, 4))
        >>> hooks = Hooks(objective=FeatureDistillation(teacher, {"_1": "_1"}, weight=0.5))
    """

    teacher: Program
    """The teacher, which is never changed."""
    pairs: Mapping[str, str]
    """Node of the teacher whose value is learned, by node of the student."""
    weight: float | Callable[[float], float] = 1.0
    """Weight of the features; or a function of the fraction of the training that is over, from 0 to 1."""
    distance: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss
    """Distance of a student's feature map to the teacher's, a scalar: a mean over the samples."""
    _student: tuple[nn.Module, fx.GraphModule] | None = field(init=False, default=None)
    _views: dict[torch.device, fx.GraphModule] = field(init=False, default_factory=dict)

    def __call__(self, model: nn.Module, batch: Batch, /) -> tuple[Tensor, Terms]:
        """Return the loss and its terms, `task` and `features`.

        Raises:
            SpecError: a node to tap does not exist.
            TrainingError: the model is not a graph module, or the distance does not accept two feature maps.
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
        """Return the teacher's taps on a device, a copy if it is on another."""
        if device not in self._views:
            view = self.teacher.tapped(list(self.pairs.values()))
            at_home = all(tensor.device == device for tensor in (*view.parameters(), *view.buffers()))
            self._views[device] = view if at_home else copy.deepcopy(view).to(device)
        return self._views[device]
