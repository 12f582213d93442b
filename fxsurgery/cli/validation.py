"""What `fxsurgery optimize` refuses before it begins: what could only fail hours later, or makes no sense together."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fxsurgery.config import RunConfig, flag
from fxsurgery.errors import ConfigError
from fxsurgery.saving.results import RESULT
from fxsurgery.training import Task


def check_data(config: RunConfig) -> None:
    """Refuse what takes data, without them.

    Raises:
        ConfigError: it says which flags to add.
    """
    if config.train_data is not None:
        return
    if config.val_data is not None:
        raise ConfigError("--val-data without --train-data: give both, or neither, to work without data")
    if not config.trained:
        raise ConfigError("--not-trained trains the weights, which takes --train-data and --val-data; give both")
    if given := _given(config, ("test_data", "loss", "metric")):
        raise ConfigError(f"{given} without --train-data and --val-data; give both, or leave these out")


def check_task(config: RunConfig, data: Mapping[str, Any]) -> None:
    """A task has all that is to be learned; anything else needs data to be selected on.

    Raises:
        ConfigError: it says which flags to add, or to leave out.
    """
    if "train_data" not in data:
        return
    if not isinstance(data["train_data"], Task):
        if "val_data" not in data:
            raise ConfigError("--train-data without --val-data: give both, or neither, to work without data")
    elif given := _given(config, ("val_data", "test_data", "loss", "metric")):
        raise ConfigError(f"--train-data is a Task, which holds these already: leave {given} out")


def check_outputs(config: RunConfig) -> None:
    """Refuse places that could not be written to once all is done.

    Raises:
        ConfigError: it says which, and why.
    """
    for name in ("onnx", "report"):
        path: Path | None = getattr(config, name)
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f"--{name}: {path} is a directory; name a file")
        if not path.parent.is_dir():
            raise ConfigError(f"--{name}: there is no directory {path.parent}; create it, or name a file elsewhere")
        _require_writable(name, path)
    for name, mark in (("out", RESULT), ("standalone", "model.py")):
        folder: Path | None = getattr(config, name)
        if folder is None:
            continue
        if folder.exists() and not (folder / mark).exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--{name}: {folder} holds something else; name a new directory, or an empty one")
        _require_writable(name, folder)


def _require_writable(name: str, path: Path) -> None:
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir():
        raise ConfigError(f"--{name}: {there} is no directory; name a directory to write to")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"--{name}: {there} cannot be written to; choose a directory that you may write to")


def _given(config: RunConfig, names: Iterable[str]) -> str:
    return " and ".join(flag(name) for name in names if getattr(config, name) is not None)
