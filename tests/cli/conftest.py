"""A folder with a model and data of its own, in which commands are given."""

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fxsurgery.cli import app

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """(batch, 3, h, w) -> (batch, 4)"""

    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))

    def forward(self, x):
        return self.head(self.second(self.first(x)))


ready = Net()


def tokens():
    return nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class Odd(nn.Module):
    """No graph can hold it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale if x.sum().item() > -1e9 else x


class WithOdd(Net):
    def __init__(self, width=16):
        super().__init__(width)
        self.second.add_module("odd", Odd())


def failing(scale=0):
    return 1 / scale


def nothing():
    return None
'''

DATA = """
import torch
from torch import nn

from fxsurgery import Task


def images(count):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count)), torch.arange(count) % 4


def train():
    return images(64)


val = images(32)
ids = torch.arange(12).reshape(2, 6)
smooth = nn.CrossEntropyLoss(label_smoothing=0.1)


def task():
    return Task.of(train(), val, batch_size=16)


def share(output, target):
    return (output.argmax(1) == target).float().mean()
"""

QUICK = ("align=2", "fewest_steps=20", "architecture_epochs=1", "finetune_epochs=1", "learning_rate=0.01")


@contextmanager
def imports_undone() -> Iterator[None]:
    """What is imported meanwhile is not imported afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith(("sample_", "broken", "/")):
                del sys.modules[name]


def written(folder: Path) -> Path:
    (folder / "sample_nets.py").write_text(NETS, encoding="utf-8")
    (folder / "sample_data.py").write_text(DATA, encoding="utf-8")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, which is the current directory."""
    monkeypatch.chdir(written(tmp_path))
    with imports_undone():
        yield tmp_path


def give(*arguments: object) -> Result:
    """What a command line comes to. Nothing but an exit may come out of it."""
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.fixture(name="give")
def _give():
    return give


@pytest.fixture
def quick() -> list[str]:
    """Flags for a search that takes a second."""
    return [f"--set={text}" for text in QUICK]


@pytest.fixture
def seen(quick: list[str]) -> list[str]:
    """The same, with data."""
    return ["--train-data", "sample_data:train", "--val-data", "sample_data:val", *quick]


@pytest.fixture(scope="session")
def evolved_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an evolution left: `evolved`, `evolved.html`; and its `told.json`."""
    folder = written(tmp_path_factory.mktemp("evolved"))
    flags = ["--train-data=sample_data:train", "--val-data=sample_data:val", "--spend=epochs=24", "--method=ectonas"]
    settings = ["match_epochs=1", "rounds=1", "rolling_epochs=1", "places=1", "learning_rate=0.02", "greediness=0.5"]
    with imports_undone(), contextlib.chdir(folder):
        keeping = ["--out=evolved", "--report=evolved.html", "--json"]
        result = give("optimize", "sample_nets:Net", *flags, *(f"--set={text}" for text in settings), *keeping)
    assert result.exit_code == 0, result.output
    (folder / "told.json").write_text(result.stdout)
    return folder


@pytest.fixture(scope="session")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one run left: `small`, `run`, `small.onnx`, `small.html`; and its `told.json`."""
    folder = written(tmp_path_factory.mktemp("optimized"))
    flags = ["--train-data=sample_data:train", "--val-data=sample_data:val", *(f"--set={text}" for text in QUICK)]
    keeping = ["--out=small", "--run-dir=run", "--onnx=small.onnx", "--report=small.html"]
    with imports_undone(), contextlib.chdir(folder):
        result = give("optimize", "sample_nets:Net", "--test-data", "sample_data:val", *flags, *keeping, "--json")
    assert result.exit_code == 0, result.output
    (folder / "told.json").write_text(result.stdout)
    return folder
