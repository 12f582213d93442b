"""Small jobs whose ends tell one executor from another if anything can."""

import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.execution import Job, JobResult
from fxsurgery.program import Program
from fxsurgery.training import Recipe, Task, adamw, cosine, sgd
from noisy import Noisy, images


def net(width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(width)
        body = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.3)]
        model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        return model.eval()


def program(width: int = 8) -> Program:
    return capture(net(width), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def task(**options) -> Task:
    return Task.of(options.pop("train_data", Noisy(48)), images(24), batch_size=16, **options)


def jobs(count: int = 3, steps: int = 6) -> list[Job]:
    recipes = [Recipe(steps=steps, optimizer=sgd(0.05), schedule=cosine()), Recipe(steps=steps, optimizer=adamw(1e-2))]
    return [Job(f"match {i}", program(8 + 4 * i), recipes[i % 2], seed=i) for i in range(count)]


def told(ended: list[JobResult]) -> list[tuple]:
    """Everything of the ends but how long they took."""
    return [
        (
            [{k: v for k, v in record.items() if k != "seconds"} for record in end.records],
            end.failure,
            end.stopped,
            None if end.failure else {name: t.numpy().tobytes() for name, t in end.weights().items()},
        )
        for end in ended
    ]
