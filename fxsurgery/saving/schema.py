"""What `graph.json` and `result.json` may hold: every key, its type and how large it may be. Nothing else is read.

Values of node arguments are checked when they are decoded (`fxsurgery.saving.values`), names when they are met here:
they become attributes and local variables of code that is generated.
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
from fxsurgery.saving.values import DEEPEST
from fxsurgery.strict_json import read_json, require_regular

FORMAT = 1
LARGEST = 2**28
"""Bytes of JSON."""
LONGEST = 4096
"""Characters of a name."""
DEEPEST_MODULE = 100
_MAX_DEPTH = 2 * DEEPEST + 20
_DIGEST = "sha256"

Read = TypeVar("Read", bound=BaseModel)


def identifier(name: str) -> str:
    """Return `name`, which code can use as a variable, an argument or an attribute.

    Raises:
        ValueError: it cannot, or Python takes it for another name, or for one of its own.
    """
    plain = name.isidentifier() and unicodedata.normalize("NFKC", name) == name and len(name) <= LONGEST
    if not plain or keyword.iskeyword(name) or name.startswith("__"):
        raise ValueError(f"{name[:60]!r} is no name")
    return name


def module_path(path: str) -> str:
    """Return `path`, which names a module or tensor.

    Raises:
        ValueError: no module or tensor can have that path.
    """
    parts = path.split(".")
    plain = re.fullmatch(r"[\w -]+(\.[\w -]+)*", path) and unicodedata.normalize("NFKC", path) == path
    short = len(path) <= LONGEST and len(parts) <= DEEPEST_MODULE
    if not plain or not short or any(keyword.iskeyword(part) or part.startswith("__") for part in parts):
        raise ValueError(f"{path[:60]!r} is no name")
    return path


Identifier = Annotated[str, AfterValidator(identifier)]
ModulePath = Annotated[str, AfterValidator(module_path)]
Inside = Annotated[str, AfterValidator(lambda path: path and module_path(path))]
ClassName = Annotated[str, Field(max_length=LONGEST)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Plain = Any
"""What `fxsurgery.saving.values` decodes."""


class _Strict(BaseModel):
    """No type is converted, and no key is unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OpaqueTarget(_Strict):
    """A function of the user's, by module and qualified name."""

    opaque: Annotated[list[Annotated[str, Field(max_length=LONGEST)]], Field(min_length=2, max_length=2)]


class NodeEntry(_Strict):
    """A node of the graph."""

    name: Identifier
    op: Literal["placeholder", "get_attr", "call_module", "call_function", "call_method", "output"]
    target: Annotated[str, Field(max_length=LONGEST)] | OpaqueTarget
    args: list[Plain]
    kwargs: dict[Identifier, Plain]
    inside: Inside = ""


class SameEntry(_Strict):
    """Another name of a module before."""

    path: ModulePath
    kind: Literal["same"]
    first: Annotated[ModulePath, Field(alias="as")]


class TreeEntry(_Strict):
    """A container, or a gate or switch of ours."""

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
    """A module of the user's."""

    path: ModulePath
    kind: Literal["opaque"]
    class_name: Annotated[ClassName, Field(alias="class")]
    reason: str
    sizes: dict[Identifier, Plain] = {}
    """Attributes that hold sizes of it, of a layer that passes resize."""


ModuleEntry = Annotated[SameEntry | TreeEntry | DepthEntry | TorchEntry | OpaqueEntry, Field(discriminator="kind")]


class StateEntry(_Strict):
    """A parameter or buffer."""

    name: ModulePath
    kind: Literal["parameter", "buffer"]
    trains: bool | None = None
    persistent: bool = True
    of: ModulePath | None = None


class SavedGraph(_Strict):
    """`graph.json`."""

    format: int
    torch: str
    name: Annotated[str, Field(max_length=LONGEST)]
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
    """What a program takes."""

    params: Annotated[int, Field(ge=0)]
    macs: Annotated[int, Field(ge=0)]
    uncounted: list[str]
    unknown_macs: list[str] = Field(default_factory=list)


class SavedResult(_Strict):
    """`result.json`."""

    format: int
    programs: list[Annotated[str, Field(pattern=r"^[a-z]+(/[0-9]+)?$")]]
    facts: dict[Identifier, Plain]
    costs: dict[str, SavedCost] | None = None
    """Not written by early versions."""
    sha256: dict[str, Digest] | None = None


def read_saved(path: Path, kind: type[Read]) -> tuple[Read, dict[str, Any]]:
    """Read a file, as its schema has it and as plain JSON.

    Raises:
        RunError: it is not there, of a later version, or no such file.
    """
    plain = read_json(path, max_bytes=LARGEST, max_depth=_MAX_DEPTH)
    found = plain.get("format") if isinstance(plain, dict) else None
    if type(found) is not int or found < 1:
        raise RunError(f"{path} is nothing that fxsurgery wrote; name the folder of a saved result")
    if found > FORMAT:
        raise RunError(f"{path} is of format {found}, and this fxsurgery reads up to {FORMAT}: update it")
    return _validated(path, kind, plain), plain


def _validated(path: Path, kind: type[Read], plain: object) -> Read:
    try:
        return kind.model_validate(plain)
    except (ValidationError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {first_fault(error)}; restore an intact copy, or save it again") from error


def first_fault(error: ValidationError | RecursionError) -> str:
    """Say what is wrong, and where, of the first thing that is."""
    if isinstance(error, RecursionError):
        return "it nests too deep"
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, found["loc"]))
    return f"{where[:200]}: {found['msg'].removeprefix('Value error, ')}"


def digest_of(plain: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON, whichever way it is laid out; what it says of digests aside."""
    rest = {name: value for name, value in plain.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        RunError: it is not there, or is no regular file.
    """
    with writing(path):
        require_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def require_digests(path: Path, plain: Mapping[str, Any], others: Mapping[str, Path]) -> None:
    """Refuse a file, or others beside it, that is not what was written; a file of an early version has no digests.

    Args:
        path: the JSON file.
        plain: its content.
        others: by the name under which `path` has their digest.

    Raises:
        RunError: a digest differs, or is not there.
    """
    digests = plain.get(_DIGEST)
    if digests is None:
        return
    if digests.keys() != {path.name, *others}:
        raise RunError(
            f"{path} is damaged: it has digests of {', '.join(sorted(digests))}; restore an intact copy, or save it "
            "again"
        )
    for name, file in others.items():
        if digests[name] != digest_of_file(file):
            raise RunError(
                f"{file} is damaged: its SHA-256 is not the one in {path.name}; restore an intact copy, or save it "
                "again"
            )
    if digests[path.name] != digest_of(plain):
        raise RunError(
            f"{path} is damaged: its SHA-256 is not the one that was written; restore an intact copy, or save it again"
        )


def with_digests(name: str, plain: dict[str, Any], others: Mapping[str, Path]) -> dict[str, Any]:
    """Return JSON with the digests of itself, as the file `name`, and of files beside it."""
    digests = {other: digest_of_file(path) for other, path in others.items()}
    return {**plain, _DIGEST: {name: digest_of(plain), **digests}}
