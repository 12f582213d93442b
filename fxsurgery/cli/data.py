"""Load data, losses and metrics by the names that the command line gives them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fxsurgery.cli.imports import called, named
from fxsurgery.errors import SourceError, reason_of
from fxsurgery.seeding import seeded
from fxsurgery.training import Task

_READY = (DataLoader, Dataset, Task, tuple, list, Mapping, Tensor, np.ndarray)
"""Types of data that are used as they are; any other callable is called and must return data."""


def data_of(text: str, what: str, seed: int) -> Any:  # noqa: ANN401 -- whatever the user has
    """Return the data that `text` names: an object, the result of a function, or the arrays of a file.

    Raises:
        ConfigError: the text has no known form.
        SourceError: the data cannot be imported, made or read.
    """
    if text.endswith((".npz", ".safetensors")):
        return _arrays(Path(text), what)
    with seeded(seed, torch.device("cpu")):
        found = named(text, what)
    if isinstance(found, _READY) or not callable(found):
        return found
    with seeded(seed, torch.device("cpu")):
        return called(found, text, what)


def callable_of(text: str, what: str) -> Any:  # noqa: ANN401 -- a function, or an object that counts
    """Return a loss or metric; a class is instantiated, any other object returned as it is.

    Raises:
        ConfigError: the text has no known form.
        SourceError: it cannot be imported or made.
    """
    found = named(text, what)
    return called(found, text, what) if isinstance(found, type) else found


def function_of(text: str, what: str) -> Any:  # noqa: ANN401 -- a function of the user's
    """Return the object that `text` names, as it is.

    Raises:
        ConfigError: the text has no known form.
        SourceError: it cannot be imported.
    """
    return named(text, what)


def metric_of(text: str, what: str) -> Any:  # noqa: ANN401 -- a name, a function, or an object that accumulates
    """Return the metric that `text` names: the user's own if it is `module:name`, else the name itself.

    Raises:
        ConfigError: the text has no known form.
        SourceError: the user's metric cannot be imported or made.
    """
    return text if ":" not in text or text.startswith("torchmetrics:") else callable_of(text, what)


def _arrays(path: Path, what: str) -> Any:  # noqa: ANN401
    """Return `(x, y)` if a file has only these arrays, else all arrays by name. Nothing in it is executed."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name] for name in file.files}
        else:
            arrays = dict(safetensors.torch.load_file(path))
    except OSError as error:
        raise SourceError(
            f"{what}: cannot read {path}: {error.strerror or error}; name a file that can be read"
        ) from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise SourceError(
            f"{what}: {path} is damaged, or holds something other than arrays: {reason_of(error)}; save the arrays "
            "again, with numpy.savez or safetensors"
        ) from error
    return (arrays["x"], arrays["y"]) if set(arrays) == {"x", "y"} else arrays
