"""Checks of `fxsurgery optimize` on the files that it will write, so that they cannot fail after hours of training."""

from pathlib import Path

from fxsurgery.config import RunConfig
from fxsurgery.errors import ConfigError, RunError
from fxsurgery.runs.layout import require_writable
from fxsurgery.saving.results import RESULT


def check_outputs(config: RunConfig) -> None:
    """Refuse paths that could not be written to at the end of the run.

    Raises:
        ConfigError: it names the flag and the path.
    """
    for name in ("onnx", "report"):
        path: Path | None = getattr(config, name)
        if path is None:
            continue
        if path.is_dir():
            raise ConfigError(f"--{name}: {path} is a directory; name a file")
        _require_writable(name, path)
    for name, mark in (("out", RESULT), ("standalone", "model.py")):
        folder: Path | None = getattr(config, name)
        if folder is None:
            continue
        if folder.exists() and not (folder / mark).exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--{name}: {folder} holds something else; name a new directory, or an empty one")
        _require_writable(name, folder)


def _require_writable(name: str, path: Path) -> None:
    try:
        require_writable(path.absolute().parent)
    except RunError as error:
        raise ConfigError(f"--{name}: {error}") from error
