"""Run many trials, several at once, each in a process of its own with one thread; estimate their time."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from typing import Protocol

import torch
from torch import nn

from benchmarks.runs import RUNS, Figures
from fxsurgery import Task
from fxsurgery.training import Recipe, constant, fit, sgd
from fxsurgery.training.batches import count

_TIMED_STEPS = 20


class Planned(Protocol):
    """A trial to run."""

    @property
    def name(self) -> str:
        """Name in the progress messages."""

    @property
    def key(self) -> str:
        """Key of its figures under `runs/`."""

    @property
    def net(self) -> str:
        """The network: all trials of one take as long an epoch."""

    @property
    def epochs(self) -> float:
        """Epochs in total."""

    def model(self) -> nn.Module:
        """The network."""

    def task(self) -> Task:
        """Return the task."""

    def figures(self) -> Figures:
        """Run it, or recall it."""


def run_all(trials: Sequence[Planned], workers: int) -> list[Figures]:
    """The figures of each trial, in their order. Those that were run before are recalled.

    With one worker they run in this process, one after the other.
    """
    began, found = time.monotonic(), dict[int, Figures]()
    for number, figures in _ended(trials, workers):
        found[number] = figures
        minutes, done = (time.monotonic() - began) / 60, f"{len(found)} of {len(trials)}"
        told = f"test accuracy {figures['test']:.4f}, {figures['params']:,.0f} parameters"
        print(f"{minutes:6.1f} min, {done}: {trials[number].name}: {told}", flush=True)
    return [found[number] for number in range(len(trials))]


def _ended(trials: Sequence[Planned], workers: int) -> Iterator[tuple[int, Figures]]:
    """Number and figures of each trial as it ends."""
    if workers == 1:
        one_thread()
        yield from ((number, trial.figures()) for number, trial in enumerate(trials))
        return
    # Not forked: a process with threads must not be.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=one_thread) as pool:
        under_way = {pool.submit(_figures, trial): number for number, trial in enumerate(trials)}
        for ended in as_completed(under_way):
            yield under_way[ended], ended.result()


def _figures(trial: Planned) -> Figures:
    return trial.figures()


def one_thread() -> None:
    """Use one thread, as each match does: then the result of a search depends only on its seed."""
    torch.set_num_threads(1)


def missing(trials: Sequence[Planned]) -> list[Planned]:
    """Return the trials that have not been completed."""
    return [trial for trial in trials if not (RUNS / f"{trial.key}.json").exists()]


def estimate(trials: Sequence[Planned], workers: int) -> str:
    """About how long the trials will take that are missing: their epochs at the pace of the network they start from.

    One that was begun before counts whole. What a search makes of its network is left out: those that it makes smaller
    train faster, those larger slower.
    """
    left = missing(trials)
    paces = dict[str, float]()
    for trial in left:
        if trial.net not in paces:
            paces[trial.net] = seconds_an_epoch(trial)
    minutes = sum(trial.epochs * paces[trial.net] for trial in left) / 60
    told = ", ".join(f"{net} {seconds:.2g}" for net, seconds in paces.items())
    return (
        f"{len(left)} of {len(trials)} trials are to be run: about {minutes:.0f} core-minutes, "
        f"{minutes / workers:.0f} minutes on {workers} workers" + (f"; seconds an epoch: {told}" if told else "")
    )


def seconds_an_epoch(trial: Planned) -> float:
    """Return the seconds of an epoch of the trial's network in one thread, including validation."""
    one_thread()
    task, model = trial.task(), trial.model()
    recipe = Recipe(steps=_TIMED_STEPS, optimizer=sgd(0.01), schedule=constant(), validations=0)
    fit(model, task, recipe, device="cpu")
    report = fit(model, task, recipe, device="cpu")
    began = time.monotonic()
    with torch.no_grad():
        looks = [model(images) for images, _ in islice(task.val_data, _TIMED_STEPS)]
    validation = (time.monotonic() - began) / len(looks) * count(task.val_data, "val_data")
    return report.seconds / _TIMED_STEPS * count(task.train_data, "train_data") + validation
