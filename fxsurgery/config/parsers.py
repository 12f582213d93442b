"""Parse values that are written as short texts: amounts, shapes, assignments."""

import re
import tomllib
from collections.abc import Mapping

from fxsurgery.budget import amount


def whole_amount(given: object) -> object:
    """Parse a limit that cannot be a fraction: an absolute amount.

    Raises:
        ValueError: it is a text, but not such a number.
    """
    if isinstance(given, str) and given.strip().endswith("%"):
        raise ValueError(f"it must be an absolute amount, not a fraction such as {given.strip()}; write 300 or 1.5k")
    return amount(given)


def shapes(given: object) -> object:
    """Parse the shapes of inputs: `"3,224,224"` or `[3, 224, 224]` is one shape, a list of these is several.

    Raises:
        ValueError: a text is not a shape.
    """
    if isinstance(given, str):
        return [_shape(given)]
    if isinstance(given, list | tuple) and given and not any(isinstance(part, str | list | tuple) for part in given):
        return [given]
    if isinstance(given, list | tuple):
        return [_shape(part) if isinstance(part, str) else part for part in given]
    return given


def names(given: object) -> object:
    """Return several names as they are, and a single one as a list of it."""
    return [given] if isinstance(given, str) else given


def flat_ratios(given: object) -> object:
    """Return a table of ratios by the whole names of layers: `layer4.conv1 = 0.5` in TOML is a table in a table.

    Raises:
        ValueError: a text is no ratio.

    Example:
        >>> flat_ratios({"layer4": {"conv1": 0.5, "conv2": "25%"}, "layer1.*": 1})
        {'layer4.conv1': 0.5, 'layer4.conv2': 0.25, 'layer1.*': 1}
    """
    if not isinstance(given, Mapping):
        return given
    flat = dict[str, object]()
    for name, ratio in given.items():
        inner = flat_ratios(ratio)
        flat |= {f"{name}.{key}": value for key, value in inner.items()} if isinstance(inner, dict) else {name: inner}
    return {name: amount(ratio) for name, ratio in flat.items()}


def _shape(text: str) -> list[int]:
    if re.fullmatch(r"\s*[1-9]\d*(\s*[,x]\s*[1-9]\d*)*\s*", text) is None:
        raise ValueError(f"{text!r} is not a shape; write 3,224,224, without the batch")
    return [int(part) for part in re.split("[,x]", text)]


def value(text: str) -> object:
    """Parse a setting as TOML: `0.01`, `true`, `[1, 2]`, `{name = "adamw", lr = 1e-3}`; else return the text."""
    try:
        return tomllib.loads(f"it = {text}")["it"]
    except tomllib.TOMLDecodeError:
        return text


def assigned(text: str) -> tuple[tuple[str, ...], str]:
    """Split `name=value` into the parts of the dotted name and the text of the value.

    Raises:
        ValueError: the text does not have this form.
    """
    name, equals, rest = text.partition("=")
    names = tuple(part.strip() for part in name.split("."))
    if not equals or not all(names) or not rest.strip():
        raise ValueError(f"{text!r} is not of the form name=value")
    return names, rest.strip()
