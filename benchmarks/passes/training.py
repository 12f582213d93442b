"""Training of the networks of these tables, and the measurements on them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.data import Splits
from benchmarks.runs import RUNS
from fxsurgery import Task
from fxsurgery.program import Program
from fxsurgery.training import Recipe, Schedule, constant, evaluate, fit, sgd, steps_for


@dataclass(frozen=True)
class Training:
    """Plain SGD with momentum."""

    epochs: float
    learning_rate: float
    weight_decay: float = 1e-4

    def run(self, model: nn.Module, task: Task, seed: int, schedule: Schedule | None = None) -> None:
        """Train `model` in place."""
        optimizer = sgd(self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        recipe = Recipe(steps=steps_for(task, self.epochs), optimizer=optimizer, schedule=schedule or constant())
        fit(model, task, recipe, seed=seed)


def task_of(data: Splits, batch_size: int, seed: int) -> Task:
    """Return Fashion-MNIST as a task; test data are scored for the tables and select nothing."""
    parts = ((part.images, part.labels) for part in (data.train, data.validation))
    return Task.of(*parts, test_data=(data.test.images, data.test.labels), batch_size=batch_size, seed=seed)


def accuracy(model: nn.Module, task: Task) -> float:
    """Return the accuracy on test data in eval mode."""
    return evaluate(model.eval(), task, task.test_data).metric


def after(program: Program, task: Task, training: Training, seed: int = 0) -> tuple[float, float]:
    """Accuracy of a program as it is, and after some training of a copy."""
    model = program.trainable_copy()
    right_after = accuracy(model, task)
    training.run(model, task, seed)
    return right_after, accuracy(model, task)


def trained(model: nn.Module, key: str, task: Task, training: Training, *, seed: int, schedule: Schedule) -> nn.Module:
    """Load the trained weights of `model` from an earlier run under this key, or train it now."""
    path: Path = RUNS / f"{key}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    training.run(model, task, seed, schedule)
    RUNS.mkdir(exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()
