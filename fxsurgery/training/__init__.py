"""Training: the task, the one loop, scores, batch norm statistics, progress."""

from fxsurgery.training.batchnorm import recalibrate
from fxsurgery.training.evaluate import Score, evaluate
from fxsurgery.training.loop import Hooks, Settings, StepInfo, device_of, fit
from fxsurgery.training.progress import Progress
from fxsurgery.training.recipe import Recipe, adamw, constant, cosine, milestones, sgd, steps_for
from fxsurgery.training.task import Task

__all__ = [
    "Hooks",
    "Progress",
    "Recipe",
    "Score",
    "Settings",
    "StepInfo",
    "Task",
    "adamw",
    "constant",
    "cosine",
    "device_of",
    "evaluate",
    "fit",
    "milestones",
    "recalibrate",
    "sgd",
    "steps_for",
]
