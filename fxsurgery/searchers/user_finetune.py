"""The stage of a user's own fine-tune function: run once, its weights kept in the run directory."""

from typing import Any

from fxsurgery.program import Program
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.seeding import mix
from fxsurgery.training.finetune import Finetune, fine_tuned_by, name_of
from fxsurgery.training.snapshot import Checkpointer, put_back, tensors_of


def user_fine_tuned(finetune: Finetune, program: Program, trainer: Trainer, stage: str, metric: str) -> Program:
    """Return a program with the weights that a function gives it; recalled if it has finished in the run directory.

    Args:
        finetune: the user's function.
        program: left as it is.
        trainer: seed, device and run directory.
        stage: name of the stage.
        metric: name of the validation metric.

    Raises:
        TrainingError: the function raises, changes the structure, or leaves weights that are not finite.
    """
    model = program.trainable_copy()

    def work(_: Checkpointer | None) -> list[Any]:
        with trainer.progress.callbacks.stage(stage, 0, metric):
            trainer.progress.note(f"{stage}: {name_of(finetune)}")
            tuned = fine_tuned_by(finetune, program, mix(trainer.seed, 0), trainer.device)
        put_back(model, tensors_of(tuned))
        return []

    trainer.run.stage(stage, model, work)
    return program.with_weights(model)
