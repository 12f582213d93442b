"""Read a config file and flags into a checked config; each error names the line or the flag.

Pydantic checks the method's settings, a frozen dataclass, against its annotations. The one field that is a function,
`optimizer`, is written as a table: `optimizer = {name = "adamw", lr = 1e-3}`.
"""

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError, validate_call

from fxsurgery.argument_names import naming_by
from fxsurgery.budget import amount
from fxsurgery.config.flag_names import FlagNames
from fxsurgery.config.mistakes import conversions, mistakes
from fxsurgery.config.parsers import assigned, value, whole_amount
from fxsurgery.config.run_config import RunConfig
from fxsurgery.config.source_locations import Origins
from fxsurgery.config.unknown_names import unknown_setting
from fxsurgery.errors import ConfigError, SurgeryError, reason_of
from fxsurgery.option_types import hints_of
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.methods import method_of
from fxsurgery.training import OptimizerFactory, adamw, sgd

Table = Mapping[str, Any]
OPTIMIZERS: Mapping[str, Callable[..., OptimizerFactory]] = {"sgd": sgd, "adamw": adamw}


def read(path: Path | None, flags: Table) -> tuple[RunConfig, Settings]:
    """Return the config of a file and of flags, which override it, and the settings of its method.

    Args:
        path: a `.toml` or `.json` file.
        flags: values by the names of `RunConfig`'s fields. Each overrides the value of the file; `settings` and
            `model_args` entry by entry.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    origins = origins_of(path, flags)
    merged = dict(origins.table)
    for name, said in flags.items():
        deep = name in {"settings", "model_args"} and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], said) if deep else said
    with naming_by(FlagNames(origins)):
        config = _config(merged, origins)
        return config, _settings(config, origins)


def origins_of(path: Path | None, flags: Table) -> Origins:
    """Return the location of each entry of a config.

    Raises:
        ConfigError: the file cannot be read.
    """
    if path is None:
        return Origins(flags=flags)
    text = _text(path)
    return Origins(path, text, flags, _table(path, text))


def effective(config: RunConfig, settings: Settings) -> dict[str, Any]:
    """Return the config with every setting of the method, as plain JSON; as a file it gives the same run."""
    dumped = TypeAdapter(RunConfig).dump_python(config, mode="json", exclude_none=True)
    plain = {name: value for name, value in dumped.items() if value not in ([], {})}
    made = {f.name: getattr(settings, f.name) for f in fields(settings)}
    said = {name: value for name, value in made.items() if value is not None and not callable(value)}
    return {**plain, "settings": {**said, **config.settings}}


def assignments(texts: Iterable[str], flag: str, example: str, *, raw: bool = False) -> dict[str, Any]:
    """Parse assignments `name=value` and `outer.inner=value` into a table.

    Args:
        texts: the assignments.
        flag: the flag that they were given to.
        example: the flag with an assignment that it takes, for the message.
        raw: keep the values as texts.

    Raises:
        ConfigError: an assignment does not have this form.
    """
    table = dict[str, Any]()
    for text in texts:
        try:
            names, rest = assigned(text)
        except ValueError as error:
            raise ConfigError(f"{flag}: {reason_of(error)}; write it as {example}") from error
        nested: Any = rest if raw else value(rest)
        for name in reversed(names):
            nested = {name: nested}
        table = _merged(table, nested)
    return table


def layer_ratios(texts: Iterable[str], flag: str) -> dict[str, object]:
    """Return what several `layer=ratio` say, by layer; a name keeps its dots.

    Args:
        texts: the ratios.
        flag: that they were given to.

    Raises:
        ConfigError: one is not of this form.

    Example:
        >>> layer_ratios(["layer4.*=0.5", "layer3=25%"], "--ratio")
        {'layer4.*': 0.5, 'layer3': 0.25}
    """
    ratios = dict[str, object]()
    for text in texts:
        name, _, ratio = (part.strip() for part in text.rpartition("="))
        if not name or not ratio:
            raise ConfigError(f"{flag}: {text!r} is not of the form layer=ratio; write it as layer4.*=0.5")
        try:
            ratios[name] = amount(ratio)
        except ValueError as error:
            raise ConfigError(f"{flag}: {text!r}: {reason_of(error)}; write it as layer4.*=0.5") from error
    return ratios


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
            f"{path} is not valid {path.suffix[1:].upper()}: {reason_of(error)}; correct the file there"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold an object, not a {type(found).__name__}")
    return found


def _config(table: Table, origins: Origins) -> RunConfig:
    """Return the checked config of a table.

    Raises:
        ConfigError: the message lists every mistake.
    """
    plain, found = dict(table), list[str]()
    for name, parse in (("budget", amount), ("spend", whole_amount)):
        if isinstance(limits := plain.pop(name, None), Mapping):
            parsed, wrong = _parsed(limits, parse)
            found += [f"{origins.tell((name, key))}: {why}" for key, why in wrong.items()]
            plain |= {name: parsed} if parsed else {}
        elif limits is not None:
            plain[name] = limits
    try:
        config: RunConfig = TypeAdapter(RunConfig).validate_python(plain)
    except ValidationError as error:
        raise ConfigError("; ".join([*found, *mistakes(error, origins, (), hints_of(RunConfig))])) from error
    except SurgeryError as error:
        raise ConfigError(f"{origins.tell(error.path)}: {error}") from error
    found += conversions(plain, config, origins, ())
    if found:
        raise ConfigError("; ".join(found))
    return config


def _parsed(limits: Table, parse: Callable[[object], object]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the limits as numbers, and for each other limit why it is not a number."""
    parsed, wrong = dict[str, object](), dict[str, str]()
    for name, limit in limits.items():
        try:
            parsed[name] = parse(limit)
        except ValueError as error:
            wrong[name] = reason_of(error)
    return parsed, wrong


def _settings(config: RunConfig, origins: Origins) -> Settings:
    """Return the settings of the method."""
    method, default = method_of(config.method, None)
    known = [f.name for f in fields(method.settings)]
    for name in config.settings:
        if name not in known:
            raise ConfigError(f"{origins.tell(('settings', name))}: {unknown_setting(name, known, method.name)}")
    table = dict(config.settings)
    if "optimizer" in table:
        table["optimizer"] = _optimizer(table["optimizer"], origins)
    try:
        made: Settings = TypeAdapter(type(default)).validate_python(table)
    except ValidationError as error:
        declared = hints_of(type(default))
        raise ConfigError("; ".join(mistakes(error, origins, ("settings",), declared))) from error
    except SurgeryError as error:
        raise ConfigError(f"{origins.tell(('settings', *error.path))}: {error}") from error
    if found := list(conversions(table, made, origins, ("settings",))):
        raise ConfigError("; ".join(found))
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
        declared = get_type_hints(make, include_extras=True)
        raise ConfigError("; ".join(mistakes(error, origins, place, declared))) from error
