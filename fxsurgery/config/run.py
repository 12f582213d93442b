"""Everything that a config file and the flags of `fxsurgery optimize` can say, as one checked value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BeforeValidator, ConfigDict

from fxsurgery.config.parsers import shapes
from fxsurgery.option_types import Count, FilePath
from fxsurgery.request import Argument, PlainArguments

Shapes: TypeAlias = Annotated[tuple[tuple[Count, ...], ...], BeforeValidator(shapes)]
_FILE: TypeAlias = Annotated[Path, FilePath]


@dataclass(frozen=True, kw_only=True)
class RunConfig(PlainArguments):
    """A run of `fxsurgery optimize`: the keys of its file, and its flags.

    A text stands for each object that `optimize` takes; what the text of a field does not say, that of the argument of
    the same name does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: Annotated[str, Argument(panel="Model and inputs", metavar="MODEL")]
    """module:factory, file.py:factory, or the directory of a saved result or a run."""
