"""Schema of `graph.json` and `result.json`: every key with its type and maximum size. Nothing else is accepted.

Node arguments are checked when they are decoded (`fxsurgery.saving.values`). Names are checked here, since they become
attributes and local variables of generated code.
"""

import hashlib
import json
import keyword
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from fxsurgery.errors import RunError
from fxsurgery.files import writing
from fxsurgery.saving.values import MAX_DEPTH
from fxsurgery.strict_json import read_json, require_regular

FORMAT = 1
MAX_BYTES = 2**28
"""Maximum size of a JSON file in bytes."""
MAX_NAME_LENGTH = 4096
"""Maximum length of a name in characters."""
MAX_MODULE_DEPTH = 100
_MAX_DEPTH = 2 * MAX_DEPTH + 20
_DIGEST = "sha256"

Read = TypeVar("Read", bound=BaseModel)


def identifier(name: str) -> str:
    """Return `name` if code can use it as a variable, an argument or an attribute.

    Raises:
        ValueError: it cannot, or Python would normalize it to another name or reserves it.
    """
    plain = name.isidentifier() and unicodedata.normalize("NFKC", name) == name and len(name) <= MAX_NAME_LENGTH
    if not plain or keyword.iskeyword(name) or name.startswith("__"):
        raise ValueError(f"{name[:60]!r} is not a valid name")
    return name


def module_path(path: str) -> str:
    """Return `path` if it is a valid path of a module or tensor.

    Raises:
        ValueError: it is not.
    """
    parts = path.split(".")
    plain = re.fullmatch(r"[\w -]+(\.[\w -]+)*", path) and unicodedata.normalize("NFKC", path) == path
    short = len(path) <= MAX_NAME_LENGTH and len(parts) <= MAX_MODULE_DEPTH
    if not plain or not short or any(keyword.iskeyword(part) or part.startswith("__") for part in parts):
        raise ValueError(f"{path[:60]!r} is not a valid path")
    return path


Identifier = Annotated[str, AfterValidator(identifier)]
ModulePath = Annotated[str, AfterValidator(module_path)]
Inside = Annotated[str, AfterValidator(lambda path: path and module_path(path))]
ClassName = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Plain = Any
"""A value that `fxsurgery.saving.values` decodes."""


class _Strict(BaseModel):
    """Base of all entries: types are not converted, and unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OpaqueTarget(_Strict):
    """A function of the user's code, by module and qualified name."""

    opaque: Annotated[list[Annotated[str, Field(max_length=MAX_NAME_LENGTH)]], Field(min_length=2, max_length=2)]


class NodeEntry(_Strict):
    """A node of the graph."""

    name: Identifier
    op: Literal["placeholder", "get_attr", "call_module", "call_function", "call_method", "output"]
    target: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | OpaqueTarget
    args: list[Plain]
    kwargs: dict[Identifier, Plain]
    inside: Inside = ""


class SameEntry(_Strict):
    """Another name of a module in an earlier entry."""

    path: ModulePath
    kind: Literal["same"]
    first: Annotated[ModulePath, Field(alias="as")]


class TreeEntry(_Strict):
    """A container, gate or switch, whose children have entries of their own."""

    path: ModulePath
    kind: Literal["tree"]
    class_name: Annotated[ClassName, Field(alias="class")]
    attributes: dict[Identifier, Plain]


class DepthEntry(_Strict):
    """Stochastic depth."""

    path: ModulePath
    kind: Literal["depth"]
    p: Annotated[float, Field(ge=0, le=1)]
    mode: Literal["row", "batch"]


NormEntry = Annotated[
    tuple[Literal["weight_norm", "spectral_norm"], Identifier, dict[Identifier, Plain]], Strict(strict=False)
]
"""A parametrization: its function, the tensor, and the options."""


class TorchEntry(_Strict):
    """A layer of torch.nn."""

    path: ModulePath
    kind: Literal["torch"]
    class_name: Annotated[ClassName, Field(alias="class")]
    arguments: dict[Identifier, Plain]
    norms: list[NormEntry] = []
    elastic: Plain = None


class OpaqueEntry(_Strict):
    """A module of the user's model, which is not saved."""

    path: ModulePath
    kind: Literal["opaque"]
    class_name: Annotated[ClassName, Field(alias="class")]
    reason: str
    sizes: dict[Identifier, Plain] = {}
    """Attributes with layer sizes that passes have changed."""


ModuleEntry = Annotated[SameEntry | TreeEntry | DepthEntry | TorchEntry | OpaqueEntry, Field(discriminator="kind")]


class StateEntry(_Strict):
    """A parameter or buffer."""

    name: ModulePath
    kind: Literal["parameter", "buffer"]
    trains: bool | None = None
    persistent: bool = True
    of: ModulePath | None = None


class SavedGraph(_Strict):
    """The content of `graph.json`."""

    format: int
    torch: str
    name: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    log: list[str]
    notes: list[str]
    batch_dims: list[Annotated[int, Field(ge=0)] | None] | None = None
    samples: Annotated[int, Field(ge=1)] | None = None
    examples: Plain
    nodes: list[NodeEntry]
    inputs: list[Identifier] | None = None
    outputs: Plain = None
    modules: list[ModuleEntry]
    state: list[StateEntry]
    sha256: dict[str, Digest] | None = None


class SavedCost(_Strict):
    """The cost of a program."""

    params: Annotated[int, Field(ge=0)]
    macs: Annotated[int, Field(ge=0)]
    uncounted: list[str]
    unknown_macs: list[str] = Field(default_factory=list)


class SavedResult(_Strict):
    """The content of `result.json`."""

    format: int
    programs: list[Annotated[str, Field(pattern=r"^[a-z]+(/[0-9]+)?$")]]
    facts: dict[Identifier, Plain]
    costs: dict[str, SavedCost] | None = None
    """Missing in files of early versions."""
    sha256: dict[str, Digest] | None = None


def read_saved(path: Path, kind: type[Read]) -> tuple[Read, dict[str, Any]]:
    """Read a JSON file and validate it.

    Returns:
        The validated content, and the same as parsed JSON.

    Raises:
        RunError: the file is missing, of a newer format, or not written by fxsurgery.
    """
    plain = read_json(path, max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH)
    found = plain.get("format") if isinstance(plain, dict) else None
    if type(found) is not int or found < 1:
        raise RunError(f"{path} was not written by fxsurgery; pass the folder of a saved result")
    if found > FORMAT:
        raise RunError(f"{path} has format {found}, but this fxsurgery reads formats up to {FORMAT}; update fxsurgery")
    return _validated(path, kind, plain), plain


def _validated(path: Path, kind: type[Read], plain: object) -> Read:
    try:
        return kind.model_validate(plain)
    except (ValidationError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {first_fault(error)}; restore an intact copy, or save it again") from error


def first_fault(error: ValidationError | RecursionError) -> str:
    """Return what is wrong, and where, for the first fault of a validation error."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, found["loc"]))
    return f"{where[:200]}: {found['msg'].removeprefix('Value error, ')}"


def digest_of(plain: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON content, independent of layout and without its own digest entries."""
    rest = {name: value for name, value in plain.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        RunError: it is missing, or not a regular file.
    """
    with writing(path):
        require_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def require_digests(path: Path, plain: Mapping[str, Any], others: Mapping[str, Path]) -> None:
    """Check the digests of a JSON file and of the files next to it. Files of early versions have none.

    Args:
        path: the JSON file.
        plain: its content.
        others: the other files by the name under which `path` stores their digest.

    Raises:
        RunError: a digest differs or is missing.
    """
    digests = plain.get(_DIGEST)
    if digests is None:
        return
    if digests.keys() != {path.name, *others}:
        raise RunError(
            f"{path} is damaged: it has the wrong set of digests ({', '.join(sorted(digests))}); restore an intact "
            "copy, or save it again"
        )
    for name, file in others.items():
        if digests[name] != digest_of_file(file):
            raise RunError(
                f"{file} is damaged: its SHA-256 differs from the one in {path.name}; restore an intact copy, or "
                "save it again"
            )
    if digests[path.name] != digest_of(plain):
        raise RunError(
            f"{path} is damaged: its SHA-256 differs from the one that was saved; restore an intact copy, or save "
            "it again"
        )


def with_digests(name: str, plain: dict[str, Any], others: Mapping[str, Path]) -> dict[str, Any]:
    """Return JSON content extended by the digests of itself, as the file `name`, and of the other files."""
    digests = {other: digest_of_file(path) for other, path in others.items()}
    return {**plain, _DIGEST: {name: digest_of(plain), **digests}}
