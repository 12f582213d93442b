"""`python -m fxsurgery` is the command line."""

from fxsurgery.cli import app

app(prog_name="fxsurgery")
