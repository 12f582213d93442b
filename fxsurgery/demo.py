"""The whole workflow on real data, in about a minute: train, halve the MACs, fine-tune, export, measure.

The data is the digits data set that ships with scikit-learn: 1,797 images of 8 by 8 pixels in ten classes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.budget import Budget
from fxsurgery.deploy import LatencyReport, OnnxModel, export_onnx
from fxsurgery.extras import requires
from fxsurgery.optimize import optimize
from fxsurgery.printable import printable
from fxsurgery.result import Result
from fxsurgery.result_facts import BeforeAfter
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.training import Callback, Progress
from fxsurgery.training.callbacks import RunBegin, StageBegin

Images = tuple[Tensor, Tensor]
MEASURE_SECONDS = 20.0
"""Most seconds to spend on measuring latencies."""


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut: (batch, in, h, w) -> (batch, out, h / stride, w / stride)."""

    def __init__(self, inside: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != out:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A small residual network with batch norm: (batch, 1, 8, 8) -> (batch, 10)."""

    def __init__(self, widths: tuple[int, int] = (48, 96)) -> None:
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.blocks = nn.Sequential(Block(first, first), Block(first, second, 2), Block(second, second))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 10))

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)))
        return logits


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Result of the demo."""

    result: Result
    files: dict[str, OnnxModel]
    latency: LatencyReport


class _StageLines(Callback):
    """Prints a line when a stage begins to train."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @override
    def on_run_begin(self, event: RunBegin) -> None:
        self._progress.note("finding a learning rate by a range test of a few steps")

    @override
    def on_stage_begin(self, event: StageBegin) -> None:
        self._progress.note(f"training stage {event.stage!r}: {event.steps:,} steps")


def digits(seed: int = 0) -> tuple[Images, Images, Images]:
    """Return training, validation and test images, (n, 1, 8, 8) from 0 to 1, with their classes."""
    with requires("demo", "the demo's data set"):
        from sklearn.datasets import load_digits  # noqa: PLC0415 -- an extra, and slow to import
        from sklearn.model_selection import train_test_split  # noqa: PLC0415 -- an extra, and slow to import

    images, labels = load_digits(return_X_y=True)
    x_rest, x_test, y_rest, y_test = train_test_split(images, labels, test_size=0.2, random_state=seed, stratify=labels)
    x_train, x_val, y_train, y_val = train_test_split(x_rest, y_rest, test_size=0.2, random_state=seed, stratify=y_rest)
    parts = ((x_train, y_train), (x_val, y_val), (x_test, y_test))
    train, val, test = (
        (torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)) for x, y in parts
    )
    return train, val, test


def run(folder: Path | None = None, *, seed: int = 0, macs: float = 0.5, console: Console | None = None) -> DemoResult:
    """Run the demo: print a line before each step that takes time, and a table at the end.

    Args:
        folder: where to write the two ONNX files; a temporary folder by default.
        seed: seed of everything random.
        macs: the budget, as a fraction of the MACs.
        console: where to print the table; standard output by default.
    """
    progress = Progress()
    progress.note("loading the digits data set of scikit-learn")
    train, val, test = digits(seed)
    progress.note(f"{len(train[0]):,} images to train on, {len(val[0])} to select on, {len(test[0])} to test on")
    progress.note("capturing a residual network as a graph, and timing it through ONNX Runtime")
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # noqa: TID251 -- forked: the initial weights follow from the seed alone
        model = DigitsNet()
    result = optimize(
        model,
        train_data=train,
        val_data=val,
        test_data=test,
        budget=Budget(macs=macs),
        trained=False,
        config=Dnal(weights_epochs=12, architecture_epochs=8, finetune_epochs=12),
        seed=seed,
        callbacks=[_StageLines(progress)],
    )
    with tempfile.TemporaryDirectory(prefix="fxsurgery-demo-") as scratch:
        where = folder or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        progress.note("exporting the original and the result to ONNX, and checking both files against PyTorch")
        files = {
            name: export_onnx(program.graph_module, program.example_inputs, where / f"{name}.onnx")
            for name, program in (("original", result.original), ("result", result.program))
        }
        progress.note(f"measuring the latency of both in turns, for at most {MEASURE_SECONDS:.0f} s")
        latency = result.benchmark(seconds=MEASURE_SECONDS)
    (console or Console()).print(table(result, files, latency))
    return DemoResult(result, files, latency)


def table(result: Result, files: dict[str, OnnxModel], latency: LatencyReport) -> Table:
    """Return the table of costs, accuracy and latency: before, after, ratio."""
    before, after = result.cost
    times = BeforeAfter(latency["original"].p50_ms, latency["result"].p50_ms)
    rows = [
        ("parameters", BeforeAfter(before.params, after.params), "{:,.0f}"),
        ("MACs", BeforeAfter(before.macs, after.macs), "{:,.0f}"),
        ("test accuracy", result.metrics["test"], "{:.4f}"),
        ("ONNX file, bytes", BeforeAfter(files["original"].bytes, files["result"].bytes), "{:,.0f}"),
        ("latency, ms", times, "{:.3f}"),
    ]
    shown = Table(
        title="fxsurgery demo: a residual network on digits", caption=Text(printable(_caption(latency), "\n"))
    )
    for heading in ("", "before", "after", "ratio"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, pair, form in rows:
        ratio = latency["result"].ratio if pair is times else pair.ratio
        shown.add_row(name, form.format(pair.before), form.format(pair.after), f"{ratio:.3f}")
    return shown


def _caption(latency: LatencyReport) -> str:
    pair = latency["result"]
    return (
        f"latency ratio {pair.ratio:.3f}, 95 % interval {pair.ratio_low:.3f} to {pair.ratio_high:.3f}, "
        f"{pair.runs} interleaved rounds\n{latency.device}, {latency.threads} thread, {latency.runtime}"
    )
