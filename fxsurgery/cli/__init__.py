"""The command line: `fxsurgery optimize | inspect | export | bench | report | demo`."""

from fxsurgery.cli.app import app

__all__ = ["app"]
