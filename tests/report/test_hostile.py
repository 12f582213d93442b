"""Every free text of a result is hostile: none of it is markup in the page, and none of it commands a terminal."""

import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from evolutions import evolved
from fxsurgery.capture import capture
from fxsurgery.inspection import inspect, inspect_program
from fxsurgery.plan import CostRange, Plan
from fxsurgery.program import Program
from fxsurgery.report import render
from fxsurgery.result import Result
from fxsurgery.searchers.session import Stage
from fxsurgery.training import Progress
from fxsurgery.training.progress import TrainingProgress
from nonempty import nonempty
from report.pages import latency, program, read, result

MARKUP = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)> ' \" onload=x {{ 7*7 }} &lt;b&gt;"
CONTROL = "\x1b]8;;file:///\x07\x1b[2J\r\x9b31m\u202e\u2066\u2028\x00"
RICH = "[red]rich[/red][link=https://example.invalid]:skull:"
HOSTILE = f"{MARKUP}{CONTROL}{RICH}"
CHOSEN = {"axis", "costs"}
"""Fields that hold one of a few names, and no free text."""
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


class Poison:
    """Fills every text that it finds; no two are the same."""

    def __init__(self, *, keys: bool) -> None:
        self.keys, self.number = keys, itertools.count()

    def text(self) -> str:
        return f"text {next(self.number)} {HOSTILE}"

    def __call__(self, value: Any, *, keys: bool | None = None) -> Any:
        keys = self.keys if keys is None else keys
        if isinstance(value, str):
            return self.text()
        if isinstance(value, Mapping):
            return {self.text() if keys else key: self(inner, keys=keys) for key, inner in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self(inner, keys=keys) for inner in value)
        if isinstance(value, Program):
            return dataclasses.replace(value, log=self(value.log), notes=self(("a note",)), name=self.text())
        if dataclasses.is_dataclass(value):
            return self.fields(value, keys=keys)
        return value

    def fields(self, value: Any, *, keys: bool) -> Any:
        made = {
            field.name: self(getattr(value, field.name), keys=keys and field.name != "history")
            for field in dataclasses.fields(value)
            if field.init and field.name not in CHOSEN
        }
        return dataclasses.replace(value, **made)


def hostile_program() -> Program:
    """A model of modules whose paths and classes are hostile; what no capture takes, a file may still hold."""
    kind = type(HOSTILE.replace("\x00", ""), (nn.Linear,), {})
    model = nn.Sequential(kind(4, 8), nn.Linear(8, 2)).eval()
    start = capture(model, torch.randn(2, 4), leaf_modules=(kind,))
    # torch.fx cannot take a double quote, a line break or a NUL in the name of a module.
    path = HOSTILE.translate({ord(c): None for c in '".\r\x00'})
    graph_module = start.draft()
    graph_module.add_module(path, graph_module.get_submodule("0"))
    next(node for node in graph_module.graph.nodes if node.target == "0").target = path
    del graph_module._modules["0"]
    graph_module.recompile()
    return dataclasses.replace(start, graph_module=graph_module)


def with_hostile_layers() -> Result:
    return result(original=hostile_program(), program=hostile_program())


MADE = {"smaller": result, "evolved": evolved, "layers": with_hostile_layers}


@pytest.fixture(params=MADE, scope="module")
def make(request: pytest.FixtureRequest) -> Callable[[], Result]:
    return MADE[request.param]


@pytest.mark.parametrize("keys", [False, True], ids=["values", "keys too"])
def test_nothing_breaks_out_of_the_page(make: Callable[[], Result], keys: bool):
    poison = Poison(keys=keys)
    given = poison(make())
    page = render(given, latency=poison(latency()), title=poison.text(), date=poison.text())
    plain = read(render(evolved(), latency=latency())), read(render(result(), latency=latency()))
    tree = read(page)
    assert {e.tag for e in nonempty(tree.walk())} <= {e.tag for one in plain for e in one.walk()}
    known = {name for one in plain for e in one.walk() for name in e.attributes}
    assert set(nonempty(name for e in tree.walk() for name in e.attributes)) <= known
    assert not COMMANDS.search(page)
    assert "49" not in tree.all("title")[0].text
    assert "\\x1b[2J" in tree.all("title")[0].text
    assert all(
        MARKUP.split("{{", maxsplit=1)[0].strip() in li.text
        for li in nonempty(tree.all("ul", class_="notes")[0].all("li"))
    )


def test_styles_and_drawings_hold_numbers_alone(make: Callable[[], Result]):
    tree = read(render(Poison(keys=False)(make()), latency=latency()))
    told = {(name, text) for element in tree.walk() for name, text in element.attributes.items()}
    for name, text in nonempty((n, t) for n, t in told if n in {"style", "d", "x", "y", "width", "height", "viewbox"}):
        assert re.fullmatch(r"[-\w .:;%+]*", text), (name, text)
    assert all(nonempty(re.fullmatch(r"[\w -]*", text) for name, text in told if name == "class"))


def harmless(text: str) -> None:
    assert text
    assert not COMMANDS.search(text), ascii(text)
    assert text.encode()


@pytest.mark.parametrize("keys", [False, True], ids=["values", "keys too"])
def test_the_summary_commands_no_terminal(make: Callable[[], Result], keys: bool):
    given = Poison(keys=keys)(make())
    shown = given.summary()
    harmless(shown)
    harmless(repr(given))
    notes = [line for line in shown.split("\n") if line.startswith("note: ")]
    assert len(notes) == len(given.notes)
    assert all(RICH in note and r"\x1b]8;;file:///\x07" in note for note in nonempty(notes))
    assert [len(part.summary().split("\n")) for part in (given, make())] == [len(shown.split("\n"))] * 2


def test_what_can_shrink_is_told_without_commands():
    found = inspect_program(dataclasses.replace(hostile_program(), notes=(HOSTILE,)))
    for text in (str(found), repr(found), repr(found.program)):
        harmless(text)
    assert r"\x1b[2J" in str(found)
    benign = inspect(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.ones(2, 4))
    assert str(found).count("\n") == str(benign).count("\n") + 1


def test_a_plan_and_a_latency_are_told_without_commands():
    plan = Plan("dnal", (CostRange("params", 2.0, 1.0, None),), (Stage("weights", 3, None),), 1.0, ("a note",))
    for given in (plan, latency()):
        text = str(Poison(keys=True)(given))
        harmless(text)
        assert text.count("\n") == str(given).count("\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_interprets_nothing_and_commands_nothing(terminal: bool):
    out = io.StringIO()
    progress = Progress(console=Console(file=out, width=1000, force_terminal=terminal, color_system=None), interval=0)
    progress.note(f"note: {HOSTILE}")
    with progress.stage(HOSTILE, 2, HOSTILE):
        progress.show(TrainingProgress(HOSTILE, 0, 1, 2, 0.5, 0.25, 0.1, 2.0))
    shown = out.getvalue()
    assert "]8;;" not in shown.replace(r"\x1b]8;;", "")
    assert shown.count(RICH) >= (1 if terminal else 3)  # a live line shortens the name of the stage
    own = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown) if terminal else shown
    harmless(own)


def test_names_of_a_command_line_are_told_without_commands(capsys: pytest.CaptureFixture[str]):
    from fxsurgery.cli.errors import give, say

    say(f"error: {HOSTILE}\nsecond line", "red")
    give(inspect_program(hostile_program()), as_json=False)
    give({HOSTILE: HOSTILE + "\x7f"}, as_json=True)
    out, err = capsys.readouterr()
    harmless(out)
    harmless(err)
    assert "second line" in err.split("\n")


def test_a_benign_program_reads_as_before():
    assert repr(program()) == "<Program of Net: 9 nodes, 0 passes>"
