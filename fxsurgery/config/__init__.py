"""What a run is asked for in text: a TOML or JSON file, and flags that go before it."""

from fxsurgery.config.parsers import shapes
from fxsurgery.config.reading import assignments, effective, read
from fxsurgery.config.run import RunConfig
from fxsurgery.config.source_locations import flag

__all__ = ["RunConfig", "assignments", "effective", "flag", "read", "shapes"]
