"""What the help says: readable at 80 columns, and its examples can be given as they stand."""

import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from fxsurgery.cli import app
from fxsurgery.cli.app import SUMMARIES
from fxsurgery.config import RunConfig
from fxsurgery.config.run_config import flag
from fxsurgery.request import arguments_of
from nonempty import nonempty

COMMANDS = {name: getattr(import_module(f"fxsurgery.cli.{name}"), name) for name in SUMMARIES}
TEXTS = {"": app.registered_callback.callback, **COMMANDS}
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def shown(callback) -> str:
    """The help as it is read, without markup."""
    return Text.from_markup(inspect.getdoc(callback)).plain


def examples(text: str) -> list[list[str]]:
    """Every command line in a text, without the program's name."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        shlex.split(line, comments=True)[1:] for line in re.findall(r"^\s*(fxsurgery [^>\n]+)", joined, re.MULTILINE)
    ]


def parsed(arguments: list[str]) -> tuple[str, dict]:
    """The command and what it would be called with; nothing is run."""
    group = typer.main.get_command(app)
    command = group.commands[arguments[0]]
    with command.make_context(arguments[0], list(arguments[1:])) as context:
        return arguments[0], dict(context.params)


def every_example() -> Iterator[tuple[str, ...]]:
    for callback in TEXTS.values():
        yield from map(tuple, examples(shown(callback)))
    yield from map(tuple, examples(DOCS.read_text(encoding="utf-8")))


def test_there_are_the_commands_in_the_order_of_their_use():
    assert list(COMMANDS) == ["demo", "inspect", "optimize", "report", "bench", "export"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_of_each_what_its_own_help_begins_with(name: str):
    first = inspect.getdoc(COMMANDS[name]).split("\n\n")[0]
    assert SUMMARIES[name] == " ".join(first.split())


@pytest.mark.parametrize("name", TEXTS)
def test_each_help_has_examples(name: str):
    found = examples(shown(TEXTS[name]))
    assert len(found) >= 2
    assert name == "" or {example[0] for example in found} == {name}


@pytest.mark.parametrize("arguments", sorted(set(every_example())), ids=" ".join)
def test_each_example_is_understood(arguments: tuple[str, ...]):
    name, params = parsed(list(arguments))
    assert name in COMMANDS
    assert any(params.values())


def test_an_example_that_rots_would_be_found():
    with pytest.raises(Exception, match=r"there is no flag --round; did you mean --rounds\?"):
        parsed(["bench", "small", "--round", "3"])


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_shown_whole_and_no_line_of_it_breaks(name: str, columns: int, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", columns)
    result = CliRunner().invoke(app, [*([name] if name else []), "--help"])
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert max(map(len, result.output.splitlines())) <= columns
    for line in nonempty(shown(TEXTS[name]).splitlines()[1:]):
        assert line.strip() in lines
    assert "[bold]" not in result.output


def test_every_key_of_the_config_has_its_flag():
    group = typer.main.get_command(app)
    options = {text for param in group.commands["optimize"].loaded().params for text in param.opts}
    assert {flag(name) for name in arguments_of(RunConfig)} - {"MODEL"} <= options


def test_without_arguments_the_help_is_shown():
    assert "Typical workflow" in CliRunner().invoke(app, []).output


def test_the_version_is_told():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"fxsurgery \d+\.\d+.*\n", result.output)
