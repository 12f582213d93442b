"""The one training loop: a task, how to train on it, and what is seen of it."""

from fxsurgery.training.batchnorm import recalibrate
from fxsurgery.training.bn_inversion import Synthetic, synthetic_inputs
from fxsurgery.training.callbacks import Callback
from fxsurgery.training.device import resolve
from fxsurgery.training.distillation import distilled_task
from fxsurgery.training.evaluate import Score, evaluate
from fxsurgery.training.feature_distillation import FeatureDistillation
from fxsurgery.training.loop import fit
from fxsurgery.training.objective import Batch, Objective, Terms, task_objective
from fxsurgery.training.optimizer_transfer import transfer_optimizer_state
from fxsurgery.training.progress import Progress
from fxsurgery.training.rank_zero import from_rank_zero
from fxsurgery.training.recipe import (
    MAX_STEPS,
    MIN_STEPS,
    Accumulate,
    MemoryFormat,
    MixedPrecision,
    OptimizerFactory,
    Recipe,
    adamw,
    sgd,
    steps_for,
)
from fxsurgery.training.sandwich import SandwichObjective
from fxsurgery.training.schedules import (
    Schedule,
    ScheduleName,
    constant,
    cosine,
    linear,
    one_cycle,
    require_factors,
    schedule_of,
    steps_at,
)
from fxsurgery.training.snapshot import Checkpointer
from fxsurgery.training.step import Hooks, StepInfo
from fxsurgery.training.synthesis_amount import Amount
from fxsurgery.training.task import Task
from fxsurgery.training.training_run import FitReport

__all__ = [
    "MAX_STEPS",
    "MIN_STEPS",
    "Accumulate",
    "Amount",
    "Batch",
    "Callback",
    "Checkpointer",
    "FeatureDistillation",
    "FitReport",
    "Hooks",
    "MemoryFormat",
    "MixedPrecision",
    "Objective",
    "OptimizerFactory",
    "Progress",
    "Recipe",
    "SandwichObjective",
    "Schedule",
    "ScheduleName",
    "Score",
    "StepInfo",
    "Synthetic",
    "Task",
    "Terms",
    "adamw",
    "constant",
    "cosine",
    "distilled_task",
    "evaluate",
    "fit",
    "from_rank_zero",
    "linear",
    "one_cycle",
    "recalibrate",
    "require_factors",
    "resolve",
    "schedule_of",
    "sgd",
    "steps_at",
    "steps_for",
    "synthetic_inputs",
    "task_objective",
    "transfer_optimizer_state",
]
