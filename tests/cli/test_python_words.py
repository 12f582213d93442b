"""Messages that a command prints speak of flags, files and config keys, never of Python's keyword arguments."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fxsurgery
from fxsurgery.cli import app
from fxsurgery.cli.app import SUMMARIES
from fxsurgery.config import RunConfig, read
from fxsurgery.config.flag_names import OTHERS
from fxsurgery.errors import ConfigError
from fxsurgery.request import arguments_of
from fxsurgery.searchers.methods import METHODS
from nonempty import nonempty

PACKAGE = Path(fxsurgery.__file__).parent
ARGUMENTS = {*arguments_of(RunConfig), *OTHERS, "config", "verbose"}
SETTINGS = {field.name for method in METHODS.values() for field in fields(method.settings)}
SPELLED = re.compile(
    rf"(?<![\w.-])(?:{'|'.join(sorted(ARGUMENTS | SETTINGS, key=len, reverse=True))})=(?!=)"
    r"|\b(?:Budget|Spend|Dnal|Prune|Ectonas)\(|\bfxsurgery\.(?:optimize|plan|inspect|load)\b"
)
"""An argument that has a flag, or a setting, as Python writes it."""
WRITERS = {"named", "keyword", "assigned", "entry", "usage"}
"""What writes an argument as the front end at work does."""

NOT_REACHED = {
    "passes/": "no command takes the options of a pass",
    "searchers/methods.py": "arguments of `optimize` by name; the config file has checks of its own",
    "searchers/common/widths.py": "`align` is checked with the settings",
    "searchers/ectonas/settings.py": "a text where a list is to be: the config file has it checked before",
    "suggestions.py": "wrong names in a call of Python",
    "request.py": "arguments of `optimize` of another type; the config file has checks of its own",
    "saving/standalone/": "code that is written",
    "capture/draws.py": "a line of the user's model, which is Python",
    "training/schedules.py": "a schedule that is a function, which no flag can give",
    "surroundings.py": "a line of the user's model, which is Python",
    "nn/": "the repr of a module",
}
"""Where such a text may stand, and why."""


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The texts of a module, but for its docstrings and what is handed to `WRITERS`, directly or by name."""
    docstrings = (n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    waiting = [argument for call in calls if call.func.id in WRITERS for argument in call.args]
    assigned = [n for n in ast.walk(tree) if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    skipped = set[ast.AST](docstrings)
    while waiting:
        inner = set(ast.walk(waiting.pop())) - skipped
        skipped |= inner
        names = {node.id for node in inner if isinstance(node, ast.Name)}
        waiting += [node.value for node in assigned if node.targets[0].id in names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.lineno, node.value


def spelled(source: str) -> list[str]:
    found = ((line, text) for line, text in texts(ast.parse(source)))
    return [f"{line}: {text}" for line, text in found if SPELLED.search(re.sub(r"Task\.of\([^)]*\)", "", text))]


def test_no_message_spells_an_argument_that_has_a_flag_as_python_does():
    found = list[str]()
    for path in nonempty(sorted(PACKAGE.rglob("*.py"))):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith(tuple(NOT_REACHED)):
            found += [f"{name}:{text}" for text in spelled(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", NOT_REACHED)
def test_each_exemption_is_in_use(name: str):
    paths = [PACKAGE / name] if name.endswith(".py") else sorted((PACKAGE / name).rglob("*.py"))
    assert any(spelled(path.read_text(encoding="utf-8")) for path in nonempty(paths))


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ('x = "pass leaf_modules=(Net,)"', True),
        ('x = f"{a}; lower align="', True),
        ('x = "such as Budget(macs=0.5)"', True),
        ('x = "fxsurgery.inspect shows it"', True),
        ('x = usage("leaf_modules=(Net,)", "leaf_modules")', False),
        ('a = "leaf_modules=(Net,)"\nx = usage(f"{a}", "leaf_modules")', False),
        ('x = "give drop_last=False"', False),
        ('x = "build the data with Task.of(train, val, loss=f)"', False),
        ('"""pass align=2"""', False),
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str, is_found: bool):
    assert bool(spelled(source)) == is_found


PYTHONIC = re.compile(
    r"\b(?:None|True|False|tuple|dict|str)\b|\b(?:Budget|Spend|Dnal|Prune|Ectonas|RunConfig)\b|[a-z]\w*=\(|\(\.\.\.\)"
)
"""Python's words, which no message about a flag needs."""
BAD = ("-1", "0", "1e999", "x", "[1]", "{}", "nan", "3.5", "true", "1" * 25, '{name = "sgd"}')


def refused(flags: dict[str, object]) -> str:
    """What the command line says of flags that it does not take; empty if it takes them."""
    try:
        read(None, {"model": "n:N", **flags})
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "name", [f.name for f in fields(RunConfig) if f.name not in {"model", "model_args", "settings"}]
)
def test_a_bad_value_of_a_flag_is_refused_without_a_word_of_python(name: str):
    wrong: list[object] = [*BAD, -1, 0, 1e999, float("nan"), [1], [], True, {}, {"a": 1}, {"macs": -1}, {"epochs": "x"}]
    messages = list(filter(None, (refused({name: value}) for value in wrong)))
    assert messages
    assert not [text for text in messages if PYTHONIC.search(text)]


@pytest.mark.parametrize("method", METHODS)
def test_a_bad_value_of_a_setting_is_refused_without_a_word_of_python(method: str):
    for field in nonempty(fields(METHODS[method].settings)):
        wrong: list[object] = [*BAD, -1, 0, 1e999, float("nan"), [1], {}, {"name": "sgd"}, {"name": "sgd", "lr": "x"}]
        told = (refused({"method": method, "settings": {field.name: value}}) for value in wrong)
        messages = list(filter(None, told))
        assert messages
        assert not [text for text in messages if PYTHONIC.search(text)]


@pytest.mark.parametrize("name", ["", *SUMMARIES])
def test_the_help_of_a_command_has_no_keyword_argument(name: str):
    shown = CliRunner().invoke(app, [*([name] if name else []), "--help"]).output
    assert "--help" in shown
    assert not re.search(r"\b(?:None|True|False)\b|\b(?:Budget|Spend|Dnal|Prune|Ectonas)\(", shown)
