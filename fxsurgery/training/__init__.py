"""The one training loop: a task, how to train on it, and what is seen of it."""

from fxsurgery.training.batchnorm import recalibrate
from fxsurgery.training.carry import carry_state
from fxsurgery.training.device import resolve
from fxsurgery.training.evaluate import Score, evaluate
from fxsurgery.training.loop import FitReport, Hooks, StepInfo, fit
from fxsurgery.training.progress import Progress
from fxsurgery.training.recipe import (
    MAX_STEPS,
    MIN_STEPS,
    MixedPrecision,
    OptimizerFactory,
    Recipe,
    Schedule,
    adamw,
    constant,
    cosine,
    sgd,
    steps_at,
    steps_for,
)
from fxsurgery.training.task import Task

__all__ = [
    "MAX_STEPS",
    "MIN_STEPS",
    "FitReport",
    "Hooks",
    "MixedPrecision",
    "OptimizerFactory",
    "Progress",
    "Recipe",
    "Schedule",
    "Score",
    "StepInfo",
    "Task",
    "adamw",
    "carry_state",
    "constant",
    "cosine",
    "evaluate",
    "fit",
    "recalibrate",
    "resolve",
    "sgd",
    "steps_at",
    "steps_for",
]
