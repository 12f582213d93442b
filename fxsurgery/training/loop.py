"""The training loop: every stage of every search, and every fine-tune, runs here.

It runs on Accelerate: CPU or CUDA, mixed precision, and several processes under `accelerate launch` or `torchrun`,
which share each batch and learn what one process would. All random numbers follow from the seed and the epoch, and the
state of the process (random states, float modes, Accelerate's state) is restored afterwards. So on a CPU the same seed
gives the same weights bit for bit, whatever ran before, even if the training was interrupted and resumed from a
snapshot.
"""

import math
from collections.abc import Iterable
from itertools import chain

from accelerate import Accelerator
from torch import nn

from fxsurgery.errors import TrainingError
from fxsurgery.option_types import Seed, checked
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.batch_stream import Stream
from fxsurgery.training.device import Device
from fxsurgery.training.distributed import BatchSharding
from fxsurgery.training.progress import Progress
from fxsurgery.training.recipe import Recipe
from fxsurgery.training.set_up import set_up
from fxsurgery.training.snapshot import Checkpointer
from fxsurgery.training.step import Hooks, Stepper
from fxsurgery.training.task import Task
from fxsurgery.training.training_run import FitReport, TrainingRun


@checked(TrainingError)
@plain_surroundings()
def fit(  # noqa: PLR0913 -- each by name; what searchers add is grouped in `Hooks`
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: Seed = 0,
    stage: str = "training",
    parameters: Iterable[nn.Parameter] | None = None,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
    device: Device | Accelerator = None,
    keeper: Checkpointer | None = None,
) -> FitReport:
    """Train `model` in place, in train mode; then it is back on its device with its train flags.

    Each of several processes takes its rows of every batch: see `fxsurgery.training.distributed`. A loss that is not a
    mean over the rows, but over tokens or pairs of them, then differs slightly, and each process draws its own
    dropout. Validation is in full precision, whatever the precision of the training.

    Args:
        model: the model to train in place, such as `Program.trainable_copy()`.
        task: data, loss and metric.
        recipe: number of steps, optimizer, schedule.
        seed: the same seed, data and machine give the same weights.
        stage: the name of this training in reports and messages.
        parameters: the parameters to train; all others are frozen meanwhile. `None` is all that require gradients.
        hooks: additions of a searcher.
        progress: where this is reported; nowhere by default.
        device: a name, a device, or your own `Accelerator`, which may accumulate gradients as `Recipe.accumulate` does;
            `None` is the GPU if there is one.
        keeper: stores snapshots. If it has one, the training is resumed from it: to the same end bit for bit in as many
            processes, up to rounding and dropout in another number of them.

    Raises:
        DataError: there is no batch, or one does not fit the model or the loss.
        DeviceError: the device is not there, is out of memory, or cannot do the precision asked for.
        DivergedError: the loss or a weight is not finite.
        TrainingError: the loss is not a scalar, or does not depend on what trains; the snapshot is of another
            training, or the optimizer or the hooks hold what no snapshot can.
    """
    progress = progress or Progress.quiet()
    if recipe.steps < 1:
        return FitReport(stage, 0, 0, 0, math.nan, None, 0.0)
    with (
        set_up(model, recipe, seed, parameters, device) as (accelerator, there, chosen),
        progress.stage(stage, recipe.steps, task.metric_name),
    ):
        sharing = BatchSharding(accelerator.process_index, accelerator.num_processes)
        sharing.agree(chain(model.parameters(), model.buffers()))
        stepper = Stepper(
            model, task, recipe, stage, hooks or Hooks(), accelerator, recipe.optimizer_of(chosen), there, sharing
        )
        with Stream(task.train_data, seed, there, sharing, task.counter(task.train_data)) as stream:
            return TrainingRun(stepper, stream, progress, keeper, seed).run()
