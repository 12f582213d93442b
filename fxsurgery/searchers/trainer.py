"""The training loop with what every stage of one run shares.

Each training goes through `Trainer`, which adds the run directory to the loop: a stage that was finished before a kill
is recalled, one that was interrupted continues from its last snapshot.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxsurgery.errors import DivergedError
from fxsurgery.runs.records import require_curve
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.training import Hooks, Progress, Recipe, Task, fit
from fxsurgery.training.probe import PLAIN, TrainingMode
from fxsurgery.training.snapshot import Checkpointer, put_back, tensors_of

Records = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Trainer:
    """The training loop with what every stage of a run shares."""

    seed: int = 0
    progress: Progress = field(default_factory=Progress.quiet)
    device: str | None = None
    """Device to train on; `None` is the GPU if there is one."""
    mode: TrainingMode = PLAIN
    accumulate: int = 1
    """Batches per optimizer step."""
    run: RunDir = field(default_factory=RunDir)

    def own(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the training mode and the accumulation of this run."""
        return replace(self.mode.of(recipe), accumulate=self.accumulate)

    def fit(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        stage: str,
        *,
        parameters: list[nn.Parameter] | None = None,
        hooks: Hooks | None = None,
    ) -> Records:
        """Train `model` in place, or give it the weights that it had after this stage before a kill.

        Returns:
            The training curve.
        """
        before = self.progress.callbacks.stages
        work = self._work(model, task, recipe, stage, parameters=parameters, hooks=hooks)
        return self._reported(self.run.stage(stage, model, work), stage, before)

    def attempt(
        self, model: nn.Module, task: Task, recipe: Recipe, stage: str, *, hooks: Hooks | None = None
    ) -> tuple[Records, str | None]:
        """Train `model` in place, as `fit` does, unless training diverges; that is kept in the run directory, too.

        Returns:
            The training curve, and why the training diverged; `None` if it did not.

        Raises:
            DivergedError: a lower learning rate would not help.
        """
        [store], reported = self.run.places([stage]), self.progress.callbacks.stages
        if store.record is None:
            before, failure = len(self.progress.history), None
            try:
                records = self._work(model, task, recipe, stage, hooks=hooks)(store.keeper())
            except DivergedError as error:
                if not error.retriable:
                    raise
                records, failure = self._taken(before), str(error)
            store.finish(records, None if failure else tensors_of(model), failure=failure)
        elif store.record["failure"] is None:
            put_back(model, store.weights())
        record = store.record or {}
        return self._reported(list(record["records"]), stage, reported), record["failure"]

    def _work(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        stage: str,
        **options: Any,  # noqa: ANN401 -- those of the training loop
    ) -> Callable[[Checkpointer | None], Records]:
        """Return the function that trains, and returns the training curve."""

        def work(keeper: Checkpointer | None) -> Records:
            before = len(self.progress.history)
            fit(
                model, task, self.own(recipe), seed=self.seed, stage=stage, progress=self.progress, device=self.device,
                keeper=keeper, **options,
            )  # fmt: skip
            return self._taken(before)

        return work

    def _taken(self, before: int) -> Records:
        """Take the records of a training out of the history."""
        records = self.progress.history[before:]
        del self.progress.history[before:]
        return records

    def _reported(self, records: Records, stage: str, before: int) -> Records:
        """Add a training curve to the history, and return it.

        Args:
            records: the curve.
            stage: the name of the stage.
            before: number of stages that callbacks had seen before it; still as many if it was recalled.
        """
        require_curve(records, stage)
        if self.progress.callbacks.stages == before:
            self.progress.callbacks.skip(records)
        self.progress.history.extend(records)
        return records
