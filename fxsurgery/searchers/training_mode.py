"""The memory format and the number format of a run: as requested, or as measured before its first stage."""

from dataclasses import astuple, replace

from fxsurgery.program import Program
from fxsurgery.runs.records import is_choice_of
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.training import MemoryFormat, MixedPrecision, Recipe, Task
from fxsurgery.training.probe import AUTO, STEPS, Auto, Probe, TrainingMode, choose, modes


def plain_mode(
    memory_format: MemoryFormat | Auto | None, mixed_precision: MixedPrecision | Auto | None
) -> TrainingMode:
    """Return the mode of a training before anything is measured."""
    return TrainingMode(
        None if memory_format == AUTO else memory_format, "no" if mixed_precision == AUTO else mixed_precision
    )


def with_fastest_mode(
    trainer: Trainer,
    program: Program,
    task: Task,
    settings: Settings,
    asked: tuple[MemoryFormat | Auto | None, MixedPrecision | Auto | None],
) -> tuple[Trainer, tuple[str, ...]]:
    """Return the trainer with the requested memory format and number format, and a note if one was chosen.

    What `auto` comes to is measured once, by the first process, and kept in the run directory.

    Args:
        trainer: with the device, the seed and the run.
        program: copies of it train to measure.
        task: what is trained on.
        settings: with the optimizer.
        asked: the memory format and the number format.
    """
    candidates = modes(program.graph_module, *asked)
    if AUTO not in asked:
        return replace(trainer, mode=candidates[0]), ()
    recipe = trainer.own(
        Recipe(steps=STEPS, optimizer=settings.optimizer_at(None), gradient_clip=settings.gradient_clip, validations=0)
    )
    probe = Probe(program.trainable_copy, task, recipe, trainer.seed, trainer.device)

    def measured() -> list[str | None]:
        mode, why = choose(probe.measure(candidates))
        return [*astuple(mode), why]

    options: dict[tuple[str | None, str | None], TrainingMode] = {
        (m.memory_format, m.mixed_precision): m for m in candidates
    }
    memory_format, mixed_precision, why = trainer.run.recall("training mode", measured, is_choice_of(options))
    note = f"training mode, as measured here: {why}"
    trainer.progress.note(note)
    return replace(trainer, mode=options[memory_format, mixed_precision]), (note,)
