"""CPU seconds and peak memory of capturing torchvision's models, optionally compared with another checkout.

    python -m benchmarks.capture_speed --against ../other-checkout --repeats 3

Each capture runs in a process of its own, on one thread, in turns with the other checkout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

HERE = Path(__file__).resolve().parents[1]
MODELS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d",
    "shufflenet_v2_x1_0", "squeezenet1_0", "swin_t", "vgg11_bn", "vit_b_16",
)  # fmt: skip
OPTIONS = {name: {"init_weights": False, "aux_logits": False} for name in ("googlenet", "inception_v3")}
"""Build without auxiliary heads that only train mode uses, which capture refuses."""
BATCH = 2
COLUMNS = {
    "model": "", "CPU seconds": ".2f", "forwards": ".1f", "memory": ".1f", "CPU seconds before": ".2f",
    "memory before": ".1f", "times as fast": ".2f",
}  # fmt: skip
"""Headings of the table, and the format of their numbers."""


class Measured(TypedDict):
    """Measurements of one capture."""

    seconds: float
    """CPU seconds of the process."""
    memory: float
    """Largest growth of resident memory, in units of the model's parameters."""
    forward: float
    """CPU seconds of one forward pass of the same images."""


def main(models: Sequence[str], against: Path | None, repeats: int, size: int) -> None:
    """Measure each model, interleaved with the other checkout, and write the table."""
    from benchmarks.tables import Table, write  # noqa: PLC0415 -- a child has no use for it

    rows = list[dict[str, str | float]]()
    for name in models:
        runs = [(_run(HERE, name, size), against and _run(against, name, size)) for _ in range(repeats)]
        rows.append(_row(name, runs))
        print(rows[-1], flush=True)
        columns = {column: spec for column, spec in COLUMNS.items() if any(column in row for row in rows)}
        notes = (
            f"Random weights, {BATCH} images of {size} x {size}, one thread, a process for each capture, the median of "
            f"{repeats}. `forwards`: over a forward pass of the same images. `memory`: the largest growth of the "
            "process's resident memory, in units of the model's parameters."
        )
        if ratios := [ratio for row in rows if isinstance(ratio := row.get("times as fast"), float)]:
            notes += f" Times as fast as before, median over the models: {statistics.median(ratios):.2f}."
        # After each model: what was measured stays if this one is stopped.
        page = write(Table("Capture of torchvision's models", columns, rows, [0], notes), "capture-speed")
    print(page)


def _row(name: str, runs: Sequence[tuple[Measured, Measured | None]]) -> dict[str, str | float]:
    ours = [own for own, _ in runs]
    row: dict[str, str | float] = {
        "model": name,
        "CPU seconds": _middle(ours, "seconds"),
        "forwards": _middle(ours, "seconds") / _middle(ours, "forward"),
        "memory": _middle(ours, "memory"),
    }
    if theirs := [other for _, other in runs if other]:
        row["CPU seconds before"] = _middle(theirs, "seconds")
        row["memory before"] = _middle(theirs, "memory")
        row["times as fast"] = statistics.median(other["seconds"] / own["seconds"] for own, other in runs if other)
    return row


def _run(checkout: Path, name: str, size: int) -> Measured:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", name, "--size", str(size)]
    done = subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True, text=True)
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def _middle(runs: Sequence[Measured], what: str) -> float:
    return statistics.median(run[what] for run in runs)  # type: ignore[literal-required]


def measure(name: str, size: int) -> Measured:
    """Capture one model in this process."""
    import torch  # noqa: PLC0415 -- of the child alone
    from torchvision import models  # noqa: PLC0415 -- as above

    from fxsurgery.capture import capture  # noqa: PLC0415 -- of the checkout that is measured

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = models.get_model(name, weights=None, **OPTIONS.get(name, {})).eval()
        images = torch.randn(BATCH, 3, size, size)
    # What is done once in a process is no part of it.
    capture(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)), images[:, :, :8, :8])
    with torch.no_grad():
        model(images)
        began = time.process_time()
        model(images)
        forward = time.process_time() - began
    before = _forget_peak()
    began = time.process_time()
    capture(model, images)
    seconds = time.process_time() - began
    parameters = sum(p.nbytes for p in model.parameters())
    return {"seconds": seconds, "memory": (_memory("VmHWM") - before) / parameters, "forward": forward}


def _forget_peak() -> int:
    """Reset the peak of resident memory and return the current value in bytes. Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _memory("VmRSS")


def _memory(which: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of torchvision models")
    parser.add_argument("--against", type=Path, help="another checkout, for the ratio")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child, given.size)))
    else:
        main(given.models, given.against and given.against.resolve(), given.repeats, given.size)
