"""Fine-tuning by more than the task's loss: by a function of the user, or with a teacher."""

from dataclasses import dataclass, fields

from fxsurgery.argument_names import entry, keyword, named
from fxsurgery.errors import DataError, SurgeryError, TrainingError
from fxsurgery.program import Program
from fxsurgery.request import OptimizeRequest
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.training import Objective, Task, task_objective
from fxsurgery.training.device import processes
from fxsurgery.training.finetune import Finetune, require_takes_model
from fxsurgery.training.knowledge_distillation import distillation_of


@dataclass(frozen=True, eq=False)
class Tuning:
    """How networks are fine-tuned."""

    finetune: Finetune | None = None
    """Function of the user that replaces the last fine-tune stage."""
    objective: Objective = task_objective
    """Objective of the training."""


def check_tuning(request: OptimizeRequest, settings: Settings) -> None:
    """Refuse what does not fit together, before the model is captured.

    Raises:
        SurgeryError: it names the argument.
    """
    if request.finetune is not None:
        require_takes_model(request.finetune)
        if processes() > 1:
            raise TrainingError(f"{keyword('finetune')} cannot be used in a distributed run; run in one process").at(
                "finetune"
            )
        if request.teacher is not None:
            raise SurgeryError(
                f"{keyword('teacher')} is for the fine-tune stage, which {keyword('finetune')} replaces; leave one out"
            ).at("teacher")
    if request.teacher is None:
        _refuse_settings(settings)
        return
    if request.data_free:
        raise DataError(
            f"{keyword('teacher')} needs data: without, the network learns from the original's own outputs; give "
            f"{named('train_data')} and {named('val_data')}, or leave it out"
        ).at("teacher")
    if settings.finetune_epochs <= 0:
        raise SurgeryError(
            f"{keyword('teacher')} is for the fine-tune stage, which has no epochs; set "
            f"{entry('settings', 'finetune_epochs', 15)}, or leave it out"
        ).at("teacher")
    if request.teacher == "original" and not request.trained:
        raise SurgeryError(
            f"{keyword('teacher')}'original' is the model as it was given, which is not trained; pass a trained module"
        ).at("teacher")


def _refuse_settings(settings: Settings) -> None:
    defaults = {f.name: f.default for f in fields(settings)}
    for name in ("distillation_weight", "distillation_temperature"):
        if getattr(settings, name) != defaults[name]:
            raise SurgeryError(
                f"{named('settings', name)} has no effect without a teacher; pass {keyword('teacher')} as well"
            ).at("settings", name)


def tuning_of(request: OptimizeRequest, settings: Settings, program: Program, task: Task | None) -> Tuning:
    """Return how networks are fine-tuned; a teacher is compared with the model on two samples.

    Raises:
        DataError: the teacher cannot take the inputs, or has other outputs.
        TrainingError: it cannot be copied.
    """
    if request.teacher is None or task is None:
        return Tuning(request.finetune)
    teacher = program.graph_module if isinstance(request.teacher, str) else request.teacher
    weight, temperature = settings.distillation_weight, settings.distillation_temperature
    return Tuning(objective=distillation_of(teacher, program, task, weight=weight, temperature=temperature))
