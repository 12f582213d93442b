"""How long to train, with what optimiser, at what rates."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from fxsurgery.training.task import Task

Factory = Callable[[Iterable[nn.Parameter]], Optimizer]
Schedule = Callable[[float], float]
"""From the share of the steps done, 0 to 1, to a multiple of the learning rate."""

FEWEST_STEPS, MOST_STEPS = 60, 20_000


@dataclass(frozen=True)
class Recipe:
    """One stage of training."""

    steps: int
    optimizer: Factory
    schedule: Schedule
    gradient_clip: float | None = None


def steps_for(task: Task, epochs: float, *, fewest: int = FEWEST_STEPS, most: int = MOST_STEPS) -> int:
    """Optimiser steps for `epochs` of the task's training data, within bounds.

    Four batches of data want more than `epochs` passes to learn anything, a million batches fewer: never
    below `fewest` nor above `most`, and none at all for 0 epochs.
    """
    if epochs <= 0:
        return 0
    return min(max(math.ceil(epochs * len(task.train_data)), fewest), most)


def sgd(lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False) -> Factory:
    """Stochastic gradient descent; vectors (biases, norms) are not decayed."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        groups = _decayed(parameters, weight_decay)
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)

    return make


def adamw(lr: float, *, weight_decay: float = 0.01) -> Factory:
    """AdamW; vectors (biases, norms) are not decayed."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(_decayed(parameters, weight_decay), lr=lr)

    return make


def _decayed(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    every = list(parameters)
    parts = [([p for p in every if p.dim() > 1], weight_decay), ([p for p in every if p.dim() <= 1], 0.0)]
    return [{"params": part, "weight_decay": decay} for part, decay in parts if part]


def constant() -> Schedule:
    """Always the full rate."""
    return lambda done: 1.0 + 0.0 * done


def cosine(warmup: float = 0.05) -> Schedule:
    """Up in a line over the first `warmup` of the steps, then down to 0 along half a cosine."""

    def rate(done: float) -> float:
        if done < warmup:
            return 0.1 + 0.9 * done / warmup
        return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    return rate


def milestones(at: tuple[float, ...], factor: float = 0.1) -> Schedule:
    """Times `factor` at each of the shares `at`."""
    return lambda done: factor ** sum(done >= mark for mark in at)
