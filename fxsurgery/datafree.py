"""A task where there are no data: answer inputs that are made of the model as the model itself does."""

import math

import torch

from fxsurgery.analysis.cost import cost
from fxsurgery.preparation import PreparedRun
from fxsurgery.searchers.session import Stage
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.training import Task
from fxsurgery.training.bn_inversion import noise, synthetic_inputs
from fxsurgery.training.distillation import commonest_answer, distilled_task
from fxsurgery.training.synthesis_amount import Amount

MONOTONOUS = 0.9
"""Share of the inputs in one class from which on agreement is no measure."""


def made_task(ready: PreparedRun, trainer: Trainer) -> tuple[Task, str]:
    """The task, whose targets are the original's outputs; and what its inputs are, for a user."""
    request = ready.request
    made = synthetic_inputs(ready.program, _amount(ready), seed=request.seed, train=trainer.fit)
    task = distilled_task(
        ready.program, made.train, made.val, batch_size=request.batch_size, seed=request.seed, device=request.device
    )
    share = commonest_answer(ready.program, task)
    if share is None or share < MONOTONOUS:
        return task, str(made)
    alike = f"the original puts {share:.0%} of them into one class, so agreement with it says little"
    return task, f"{made}; {alike}"


def foreseen_task(ready: PreparedRun) -> tuple[Task, Task, Stage, Amount]:
    """Return stand-ins before anything is made: a task of as many batches, and one of like batches.

    Returns:
        Both tasks, the stage that makes the inputs, and the amount of them.
    """
    request, amount = ready.request, _amount(ready)
    rows = [(torch.zeros(n, 1), torch.zeros(n)) for n in (amount.samples, amount.validation)]
    few = noise(ready.program, min(request.batch_size, amount.samples), request.seed)
    alike = distilled_task(
        ready.program, few, few, batch_size=request.batch_size, seed=request.seed, device=request.device
    )
    batches = math.ceil(amount.samples / amount.batch_size) + 1
    making = Stage("synthetic inputs", batches * amount.steps, validations=0, trainings=batches)
    return Task.of(*rows, batch_size=request.batch_size), alike, making, amount


def _amount(ready: PreparedRun) -> Amount:
    return Amount.affordable(cost(ready.program).macs)
