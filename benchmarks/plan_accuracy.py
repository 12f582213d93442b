"""Compare the estimate of `fxsurgery.plan` with the time that `fxsurgery.optimize` then takes.

    python benchmarks/plan_accuracy.py [--cpu]

Each job runs in two processes that have just started: one plans, the other optimizes. The table has the estimate, the
time, and estimate over time. With `--cpu` both are processor time, which does not depend on what else the machine does.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib import import_module

import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Dnal, Ectonas, Prune, Spend
from fxsurgery.time_estimate import Stopwatch


def convnet() -> nn.Module:
    """Return a small convolutional network."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1)]
    head = [nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)]
    return nn.Sequential(*layers, *head)


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise (count, 3, 16, 16) that is brighter for higher classes, and the classes (count,)."""
    generator = torch.Generator().manual_seed(count)
    target = torch.arange(count) % 4
    return torch.randn(count, 3, 16, 16, generator=generator) + 0.3 * target[:, None, None, None], target


DATA = {"train_data": images(512), "val_data": images(128)}
JOBS = {
    "dnal": {**DATA, "config": Dnal(), "budget": Budget(macs=0.5)},
    "prune": {**DATA, "config": Prune(), "budget": Budget(macs=0.5)},
    "ectonas": {**DATA, "config": Ectonas(), "spend": Spend(epochs=60)},
    "data-free": {"config": Prune(), "budget": Budget(macs=0.5), "example_inputs": (images(2)[0],)},
    "latency": {**DATA, "config": Prune(), "budget": Budget(latency_ms=0.9)},
}


def seconds(job: str, *, plans: bool, cpu: bool) -> float:
    """Return the seconds of a job in this process, estimated or taken."""
    clock = time.process_time if cpu else time.perf_counter
    if plans:
        vars(import_module("fxsurgery.optimize"))["Stopwatch"] = lambda: Stopwatch(clock)
        return fxsurgery.plan(convnet(), **JOBS[job], verbose=False).seconds
    began = clock()
    fxsurgery.optimize(convnet(), **JOBS[job], verbose=False)
    return clock() - began


def in_new_process(job: str, what: str, *, cpu: bool) -> float:
    """Return the seconds of a job, estimated (`plan`) or taken (`run`) in a process of its own."""
    command = [sys.executable, __file__, "--job", job, "--what", what, *(["--cpu"] if cpu else [])]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"some of: {', '.join(JOBS)}")
    parser.add_argument("--cpu", action="store_true", help="compare processor time")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(seconds(given.job, plans=given.what == "plan", cpu=given.cpu)))
        return
    print(f"{'job':<12}{'plan, s':>10}{'run, s':>10}{'ratio':>8}")
    for job in given.jobs or JOBS:
        planned, taken = (in_new_process(job, what, cpu=given.cpu) for what in ("plan", "run"))
        print(f"{job:<12}{planned:>10.1f}{taken:>10.1f}{planned / taken:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
