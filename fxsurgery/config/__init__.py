"""The arguments of a run as text: a TOML or JSON file, and flags that override it."""

from fxsurgery.config.flag_names import FlagNames
from fxsurgery.config.parsers import shapes
from fxsurgery.config.reading import assignments, effective, layer_ratios, origins_of, read
from fxsurgery.config.run_config import RunConfig, flag, text_of
from fxsurgery.config.source_locations import Origins

__all__ = [
    "FlagNames",
    "Origins",
    "RunConfig",
    "assignments",
    "effective",
    "flag",
    "layer_ratios",
    "origins_of",
    "read",
    "shapes",
    "text_of",
]
