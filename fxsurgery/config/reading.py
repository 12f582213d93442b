"""From a file and flags to a checked config; every mistake is told with its place.

The method's settings are its own frozen dataclass, which pydantic checks as it stands. Its one field that is a
function, `optimizer`, is written as a table: `optimizer = {name = "adamw", lr = 1e-3}`.
"""

import difflib
import inspect
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, validate_call

from fxsurgery.budget import Budget, Spend
from fxsurgery.config.parsers import assigned, value
from fxsurgery.config.run import RunConfig
from fxsurgery.config.source_locations import Origins, Place
from fxsurgery.errors import ConfigError, SurgeryError, reason_of
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.methods import method_of
from fxsurgery.training import OptimizerFactory, adamw, sgd

Table = Mapping[str, Any]
OPTIMIZERS: Mapping[str, Callable[..., OptimizerFactory]] = {"sgd": sgd, "adamw": adamw}


def read(path: Path | None, flags: Table) -> tuple[RunConfig, Settings]:
    """The config of a file and of flags, which go before it, and the settings of its method.

    Args:
        path: a `.toml` or `.json` file.
        flags: by the names of `RunConfig`'s fields. Each takes the place of what the file says; of `settings` and
            `model_args`, entry by entry.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is of the wrong kind.
    """
    text = _text(path) if path else ""
    origins = Origins(path, text, flags)
    merged = dict(_table(path, text)) if path else {}
    for name, said in flags.items():
        deep = name in {"settings", "model_args"} and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], said) if deep else said
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_told(error, origins, (), RunConfig.model_fields)) from error
    return config, _settings(config, origins)


def effective(config: RunConfig, settings: Settings) -> dict[str, Any]:
    """The config with every setting that it comes to, as plain JSON; as a file it gives the same run."""
    plain = {name: value for name, value in config.model_dump(mode="json").items() if value not in (None, [], {})}
    made = {f.name: getattr(settings, f.name) for f in fields(settings)}
    said = {name: value for name, value in made.items() if value is not None and not callable(value)}
    return {**plain, "settings": {**said, **config.settings}}


def assignments(texts: Iterable[str], flag: str, *, raw: bool = False) -> dict[str, Any]:
    """What `name=value` and `outer.inner=value` say, as a table.

    Args:
        texts: the assignments.
        flag: that they were given to.
        raw: leave the values as texts.

    Raises:
        ConfigError: one is not of this form.
    """
    table = dict[str, Any]()
    for text in texts:
        try:
            names, rest = assigned(text)
        except ValueError as error:
            raise ConfigError(f"{flag}: {reason_of(error)}; write it as lr=0.1 or outer.inner=2") from error
        nested: Any = rest if raw else value(rest)
        for name in reversed(names):
            nested = {name: nested}
        table = _merged(table, nested)
    return table


def _merged(below: Table, above: Table) -> dict[str, Any]:
    both = dict(below)
    for name, said in above.items():
        deep = isinstance(said, Mapping) and isinstance(both.get(name), Mapping)
        both[name] = _merged(both[name], said) if deep else said
    return both


def _text(path: Path) -> str:
    if path.suffix not in {".toml", ".json"}:
        raise ConfigError(f"{path}: a config file is a .toml or a .json file; name one of these")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; name a file that can be read") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8; save it as UTF-8") from error


def _table(path: Path, text: str) -> Table:
    try:
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{path} is no valid {path.suffix[1:].upper()}: {reason_of(error)}; correct the file there"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__} where it must hold an object")
    return found


def _settings(config: RunConfig, origins: Origins) -> Settings:
    """The method's settings of the table."""
    method, default = method_of(config.method, None)
    known = [f.name for f in fields(method.settings)]
    for name in config.settings:
        if name not in known:
            raise ConfigError(
                f"{origins.tell(('settings', name))}: {_unknown(name, known, f'setting of {method.name}')}"
            )
    table = dict(config.settings)
    if "optimizer" in table:
        table["optimizer"] = _optimizer(table["optimizer"], origins)
    try:
        made: Settings = TypeAdapter(type(default)).validate_python(table)
    except ValidationError as error:
        raise ConfigError(_told(error, origins, ("settings",), known)) from error
    except SurgeryError as error:
        raise ConfigError(f"{origins.tell(('settings',))}: {error}") from error
    return made


def _optimizer(table: object, origins: Origins) -> OptimizerFactory:
    place = ("settings", "optimizer")
    name = str(table.get("name")) if isinstance(table, Mapping) else ""
    if not isinstance(table, Mapping) or name not in OPTIMIZERS:
        names = " or ".join(f'"{known}"' for known in OPTIMIZERS)
        raise ConfigError(f'{origins.tell(place)}: write a table, {{name = "adamw", lr = 1e-3}}; the name is {names}')
    make = OPTIMIZERS[name]
    try:
        return validate_call(make)(**{key: said for key, said in table.items() if key != "name"})
    except ValidationError as error:
        raise ConfigError(_told(error, origins, place, inspect.signature(make).parameters)) from error


def _told(error: ValidationError, origins: Origins, at: Place, known: Iterable[str]) -> str:
    """Every mistake that pydantic found, each with its place."""
    mistakes = (_mistake(found, origins, at, known) for found in error.errors(include_url=False, include_context=False))
    return "; ".join(dict.fromkeys(mistakes))


def _mistake(found: Any, origins: Origins, at: Place, known: Iterable[str]) -> str:  # noqa: ANN401 -- pydantic's
    kind, is_key = found["type"], found["loc"][-1:] == ("[key]",)
    place: Place = (*at, *(found["loc"][:-1] if is_key else found["loc"]))
    if kind == "missing" and place == ("model",):
        return "no model: name it as module:factory, or as a saved directory"
    if is_key or kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        names, what = (_LIMITS.get(str(place[0]), ()), "limit") if is_key else (known, "key")
        return f"{origins.tell(place)}: {_unknown(str(place[-1]), names, what)}"
    said = found["msg"].removeprefix("Value error, ").replace("Input ", "it ")
    shown = "" if kind in {"value_error", "missing", "missing_argument"} else f", and is {_short(found['input'])}"
    return f"{origins.tell(place)}: {said}{shown}"


_LIMITS = {"budget": [f.name for f in fields(Budget)], "spend": [f.name for f in fields(Spend)]}


def _unknown(name: str, known: Iterable[str], what: str) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
    return f"{name!r} is no {what}; {hint}"


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
