"""Load models and their inputs by the names that the command line gives them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxsurgery
from fxsurgery.capture.input_inference import guess_inputs
from fxsurgery.cli.data import data_of
from fxsurgery.cli.imports import called, is_named, named
from fxsurgery.cli.model_names import remedy_for, remedy_for_directory
from fxsurgery.cli.weights import load_weights
from fxsurgery.config import assignments, shapes
from fxsurgery.errors import ConfigError, SourceError, SurgeryError, reason_of
from fxsurgery.inputs import Inputs
from fxsurgery.result import Result
from fxsurgery.runs.layout import JOURNAL
from fxsurgery.saving.results import RESULT as SAVED
from fxsurgery.seeding import seeded


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model and its inputs."""

    model: nn.Module
    inputs: Inputs | None = None
    """Inputs to capture the model on; `None` if none were given."""
    result: Result | None = None
    """The saved result that the model came from, if any."""

    def member(self, number: int | None) -> "Loaded":
        """Return another network of the Pareto front; the model itself if `number` is `None`.

        Raises:
            ConfigError: there is no such network.
        """
        if number is None:
            return self
        if self.result is None:
            raise ConfigError(
                "--member: the model is not a saved result, so it has no Pareto front; leave --member out, or name a "
                "saved result"
            )
        taken = member_of(self.result, number)
        return Loaded(taken.model, self.inputs, taken)

    def known_inputs(self) -> tuple[Inputs, tuple[str, ...]]:
        """Return inputs to capture the model on, inferred if none were given, and notes on the inference."""
        if self.inputs is not None:
            return self.inputs, ()
        guessed, how = guess_inputs(self.model)
        return guessed, (how,)


@dataclass(frozen=True)
class Wanted:
    """The model and its inputs as the command line names them."""

    model: str
    arguments: Mapping[str, Any] | None = None
    weights: Path | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    example_inputs: str | None = None
    seed: int = 0
    original: str | None = None
    """Name of the original model, for a saved model with leaf modules."""

    def load(self) -> Loaded:
        """Load the model.

        Raises:
            ConfigError: a text has no known form.
            SourceError: the model cannot be imported, made or read, or is not a `torch.nn.Module`.
            RunError: a saved directory cannot be read.
        """
        if Path(self.model).is_dir():
            return self._saved()
        model = self._made()
        if self.weights is not None:
            load_weights(model, self.weights)
        return Loaded(model, self._inputs())

    def _saved(self) -> Loaded:
        refused = {"--model-args": self.arguments if self.original is None else None, "--weights": self.weights}
        if given := [name for name, value in refused.items() if value]:
            raise ConfigError(
                f"{' and '.join(given)}: {self.model} is a saved model, which has its own; leave them out"
            )
        result = saved_result(Path(self.model), self.original, self.arguments)
        return Loaded(result.model, self._inputs() or result.program.examples, result)

    def _made(self) -> nn.Module:
        if not is_named(self.model):
            raise ConfigError(f"MODEL: {remedy_for(self.model)}")
        # Importing may draw numbers: those that the factory draws must not depend on earlier imports.
        with seeded(self.seed, torch.device("cpu")):
            found = named(self.model, "MODEL")
        if isinstance(found, nn.Module):
            if self.arguments:
                raise ConfigError(
                    f"--model-args: {self.model} is already a module, so it is not called; leave --model-args out, or "
                    "name its class"
                )
            return found
        if not callable(found):
            raise SourceError(
                f"MODEL: {self.model} is a {type(found).__name__}; it must be a torch.nn.Module, "
                "or a class or function that returns one"
            )
        with seeded(self.seed, torch.device("cpu")):
            made = called(found, self.model, "MODEL", self.arguments)
        if not isinstance(made, nn.Module):
            raise SourceError(
                f"MODEL: {self.model}() returns a {type(made).__name__}, not a torch.nn.Module; name a class or "
                "function that returns a module"
            )
        return made

    def _inputs(self) -> Inputs | None:
        if self.shapes and self.example_inputs:
            raise ConfigError("--example-shape and --example-inputs: give one of the two")
        if self.shapes:
            generator = torch.Generator().manual_seed(self.seed)
            return Inputs(tuple(torch.randn(2, *shape, generator=generator) for shape in self.shapes))
        if self.example_inputs is None:
            return None
        found = data_of(self.example_inputs, "--example-inputs", self.seed)
        if isinstance(found, Mapping):
            return Inputs((), {name: _tensor(value) for name, value in found.items()})
        return Inputs(tuple(map(_tensor, found)) if isinstance(found, tuple | list) else (_tensor(found),))


def wanted(  # noqa: PLR0917 -- as the flags come
    model: str,
    model_args: list[str] | None,
    weights: Path | None,
    example_shape: list[str] | None,
    example_inputs: str | None,
    seed: int,
    original: str | None = None,
) -> Wanted:
    """Return the model and inputs that the flags shared by several commands name.

    Raises:
        ConfigError: a flag has no known form.
    """
    try:
        sizes: Any = shapes(example_shape or [])
    except ValueError as error:
        raise ConfigError(f"--example-shape: {reason_of(error)}; write sizes such as 3,224,224") from error
    return Wanted(model, model_arguments(model_args or []), weights, tuple(sizes), example_inputs, seed, original)


def model_arguments(texts: list[str]) -> dict[str, Any]:
    """Parse `--model-args`: assignments `name=value`, or one JSON object.

    Raises:
        ConfigError: they have neither form.
    """
    if len(texts) == 1 and texts[0].lstrip().startswith("{"):
        try:
            found: dict[str, Any] = json.loads(texts[0])
        except ValueError as error:
            raise ConfigError(
                f"--model-args: {texts[0]!r} is not valid JSON: {reason_of(error)}; quote text as JSON does, or write "
                "name=value"
            ) from error
        return found
    return assignments(texts, "--model-args", "--model-args width=64")


def saved_result(folder: Path, original: str | None = None, arguments: Mapping[str, Any] | None = None) -> Result:
    """Load the result in a directory that `Result.save` wrote, or in a run directory.

    Args:
        folder: the directory.
        original: name of the user's model, which provides the leaf modules of the result.
        arguments: arguments of the factory that `original` names.

    Raises:
        SourceError: the directory holds neither a result nor a run, or `original` cannot be made.
        RunError: the run has not finished, or the result cannot be read.
    """
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.is_file() else f"there is no directory {folder}"
        raise SourceError(f"{what}; name the directory of a saved result or of a run, which --out or --run-dir made")
    if not ((folder / SAVED).is_file() or (folder / JOURNAL).is_file()):
        raise SourceError(remedy_for_directory(folder))
    model = None if original is None else Wanted(original, arguments).load().model
    return fxsurgery.load(folder, original=model)


def member_of(result: Result, number: int | None) -> Result:
    """Return a result with another network of its Pareto front selected; the result itself if `number` is `None`.

    Raises:
        ConfigError: there is no such network.
    """
    try:
        return result if number is None else result.member(number)
    except SurgeryError as error:
        raise ConfigError(f"--member: {error}") from error


def teacher_of(text: str, what: str) -> Any:  # noqa: ANN401 -- a module, or a name that is passed on
    """Return the teacher that `text` names: a module, what a function gives, or the name `original`.

    Raises:
        ConfigError: the text has no known form.
        SourceError: it cannot be imported or made.
    """
    if text == "original":
        return text
    found = named(text, what)
    return found if isinstance(found, nn.Module) else called(found, text, what)


def module_class(text: str) -> type[nn.Module]:
    """Return the class of modules that `text` names.

    Raises:
        ConfigError: the text has no known form.
        SourceError: the object is not a class of modules.
    """
    found = named(text, "--leaf-module")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SourceError(f"--leaf-module: {text} is not a subclass of torch.nn.Module; name one as module:Class")
    return found


def _tensor(value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise SourceError(
            f"--example-inputs: inputs are tensors or arrays, not a {type(value).__name__}; give torch tensors or "
            "NumPy arrays"
        )
    return value
