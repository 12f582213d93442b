"""Fine-tune on the task and on the outputs of a teacher: knowledge distillation (Hinton et al. 2015).

With z the outputs of the network and t those of the teacher on the same batch, w the weight and T the temperature,

    L = (1 - w) * L_task + w * D(z, t)

where D is `T^2 KL(softmax(t / T) || softmax(z / T))` for class scores and the mean squared error for other outputs,
averaged over the outputs. An output holds class scores if the task's loss is a cross-entropy, or by its name, `logits`
or `out`. The teacher runs in eval mode and without gradients.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.argument_names import keyword
from fxsurgery.errors import DataError, SurgeryError, TrainingError, reason_of
from fxsurgery.inputs import InputPath, Inputs, tensors_in
from fxsurgery.program import Program
from fxsurgery.training.distillation import SCORES, Output, OutputMatch, outputs_of
from fxsurgery.training.finite import wrong_values
from fxsurgery.training.invocation import predict
from fxsurgery.training.model_state import borrowed
from fxsurgery.training.objective import TASK, Batch, Terms
from fxsurgery.training.task import Task


@dataclass(eq=False)
class KnowledgeDistillation:
    """An objective: the task's loss mixed with the distance to the outputs of a teacher."""

    teacher: nn.Module
    """In eval mode, frozen; it is never changed."""
    match: OutputMatch
    """Outputs that are compared, and how."""
    paths: Sequence[InputPath]
    """Where each of them is in the teacher's output."""
    weight: float = 0.5
    """Weight of the distillation, 0 to 1; that of the task is the rest."""
    _copies: dict[torch.device, nn.Module] = field(init=False, default_factory=dict, repr=False)

    def __call__(self, model: nn.Module, batch: Batch, /) -> tuple[Tensor, Terms]:
        """Return the loss and its terms, `task` and `distillation`."""
        with torch.no_grad():
            answers = dict(tensors_in(batch.predict(self._teacher_on(batch.device))))
        output = batch.predict(model, keep=False)
        task = batch.loss(output)
        distance = self.match.loss(output, {str(i): answers[path] for i, path in enumerate(self.paths)})
        loss = (1 - self.weight) * task + self.weight * distance
        return loss, {TASK: task, "distillation": distance}

    def _teacher_on(self, device: torch.device) -> nn.Module:
        """Return the teacher on a device, a copy if it is on another."""
        if device not in self._copies:
            is_there = all(x.device == device for x in (*self.teacher.parameters(), *self.teacher.buffers()))
            self._copies[device] = self.teacher if is_there else copy.deepcopy(self.teacher).to(device)
        return self._copies[device]


def distillation_of(
    teacher: nn.Module, program: Program, task: Task, *, weight: float, temperature: float
) -> KnowledgeDistillation:
    """Return the objective that distills a teacher into networks made of `program`.

    Args:
        teacher: takes the same inputs; a copy of it is used.
        program: the original network.
        task: its data give two samples to compare the outputs on; its loss decides which output holds class scores.
        weight: weight of the distillation, 0 to 1.
        temperature: temperature of class scores.

    Raises:
        DataError: the teacher cannot take the inputs, or its outputs do not match those of the network.
        TrainingError: the teacher cannot be copied.
    """
    own = _frozen_copy(teacher)
    inputs = task.capture_examples()
    outputs = [_with_classes(output, task) for output in _comparable(program)]
    given, theirs = _tensors(program.graph_module, inputs), _outputs_of(own, inputs)
    paths = [_matching(output.place, given, theirs, alone=len(outputs) == 1) for output in outputs]
    measured = [
        replace(output, probabilities=_are_probabilities(theirs[path], output.classes))
        for output, path in zip(outputs, paths, strict=True)
    ]
    return KnowledgeDistillation(own, OutputMatch(tuple(measured), temperature), paths, weight)


def _frozen_copy(teacher: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(teacher).eval().requires_grad_(requires_grad=False)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise TrainingError(
            f"{keyword('teacher')} a {type(teacher).__name__} cannot be copied: {reason_of(error)}; give a module that "
            "copy.deepcopy can copy"
        ) from error


def _comparable(program: Program) -> tuple[Output, ...]:
    try:
        return outputs_of(program)
    except DataError as error:
        raise DataError(f"{keyword('teacher')} cannot teach this model: {error}") from error


def _with_classes(output: Output, task: Task) -> Output:
    """Return an output as class scores only if its name or the task's loss shows that it holds them."""
    is_named = bool(output.place) and output.place[-1] in SCORES
    return output if is_named or task.counting is not None else replace(output, classes=None)


def _outputs_of(teacher: nn.Module, inputs: Inputs) -> dict[InputPath, Tensor]:
    try:
        found = _tensors(teacher, inputs)
    except SurgeryError as error:
        raise DataError(f"{keyword('teacher')} {error}") from error
    if wrong := wrong_values(found):
        raise DataError(f"{keyword('teacher')} its outputs are not finite: {wrong}; check its weights")
    return found


def _tensors(module: nn.Module, inputs: Inputs) -> dict[InputPath, Tensor]:
    """Return the floating-point tensors of a module's output in eval mode, by their place."""
    with borrowed(module, None) as device, torch.no_grad():
        module.eval()
        output: Any = predict(module, inputs.clone().map(lambda x: x.to(device)))
        return {path: x.detach().cpu() for path, x in tensors_in(output) if x.is_floating_point()}


def _matching(
    path: InputPath, given: dict[InputPath, Tensor], theirs: dict[InputPath, Tensor], *, alone: bool
) -> InputPath:
    """Return where the teacher has an output: at the same place, or its only one.

    Raises:
        DataError: it has none there, or one of another shape.
    """
    other = next(iter(theirs)) if alone and len(theirs) == 1 else path
    name = ".".join(map(str, path)) or "output"
    if other not in theirs:
        names = ", ".join(".".join(map(str, one)) or "a tensor" for one in theirs) or "no floating-point tensor"
        raise DataError(f"{keyword('teacher')} gives no `{name}` as the model does, but {names}; give one that does")
    if theirs[other].shape != given[path].shape:
        raise DataError(
            f"{keyword('teacher')} gives `{name}` of shape {tuple(theirs[other].shape)}, the model "
            f"{tuple(given[path].shape)}; give a teacher with outputs of the same shape"
        )
    return other


def _are_probabilities(answers: Tensor, classes: int | None) -> bool:
    if classes is None:
        return False
    sums = answers.double().sum(classes)
    return bool((answers >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
