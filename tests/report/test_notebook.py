"""What a notebook shows: short reprs, cards of tables and bars, and the pictures of the report by name."""

import dataclasses
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

import fxsurgery
from evolutions import evolved
from fxsurgery.display import Figure
from fxsurgery.errors import SurgeryError
from fxsurgery.inspection import Inspection, inspect_program
from fxsurgery.passes import PruneChannels
from fxsurgery.plan import CostRange, Plan
from fxsurgery.report.figures import FIGURES, MAX_ROWS
from fxsurgery.result import Result
from fxsurgery.searchers.session import Stage
from nonempty import nonempty
from report.pages import latency, program, read, result
from report.test_hostile import COMMANDS, Poison, hostile_program, with_hostile_layers

MAX_REPR = 200


def inspection() -> Inspection:
    return inspect_program(program())


def plan() -> Plan:
    reach = (CostRange("params", 2000.0, 1000.0, None), CostRange("latency_ms", 1.5, None, 1.0))
    return Plan("dnal", reach, (Stage("weights", 300), Stage("fine-tune", 100)), 90.0, ("a note",), (60.0, 20.0))


SHOWN = {"result": result, "evolved": evolved, "inspection": inspection, "plan": plan, "latency": latency}
VALUES: dict[str, Callable[[], object]] = {
    **SHOWN,
    "deep inspection": lambda: inspect_program(program(blocks=80)),
    "long plan": lambda: dataclasses.replace(plan(), notes=("note " * 50,) * 50),
    "many latencies": lambda: dataclasses.replace(latency(), models=latency().models * 40),
    "search": lambda: evolved().search,
    "trial": lambda: evolved().search.trials[-1],
    "member": lambda: evolved().pareto[0],
    "program": program,
    "cost": lambda: dataclasses.replace(result().cost[0], uncounted=tuple(f"operation {i}" for i in range(40))),
    "inputs": lambda: program().examples,
    "pass result": lambda: PruneChannels((("stem", (0, 1)),))(program()),
    "figure": lambda: result().plot("widths"),
    "budget": lambda: fxsurgery.Budget(macs=0.5),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_repr_is_one_short_line(name: str):
    shown = repr(VALUES[name]())
    assert len(shown) <= MAX_REPR
    assert "\n" not in shown
    assert "tensor(" not in shown


def test_a_repr_says_what_matters():
    assert repr(plan()) == "<Plan for dnal: 2 stages, 400 steps, about 1:30>"
    assert repr(latency()) == "<LatencyReport: original 1.234 ms, result 0.617 ms, ratio 0.512; batch 1 on a processor>"
    assert repr(inspection()).startswith("<Inspection of Net: 100.0% of 322,624 MACs editable, ")
    assert repr(program().examples) == "Inputs(float32[2, 3, 8, 8])"


@pytest.mark.parametrize("name", SHOWN)
def test_a_card_is_markup_that_stands_alone(name: str):
    given = SHOWN[name]()
    page = read(given._repr_html_())
    assert {"script", "style", "link", "img", "iframe", "a"}.isdisjoint({e.tag for e in nonempty(page.walk())})
    assert page.all("table")
    styles = " ".join(e.attributes.get("style", "") for e in page.walk())
    assert "url(" not in styles
    assert "color:#fff" not in styles
    assert "color:#000" not in styles


def test_cards_hold_the_numbers():
    cells = [[cell.text for cell in row.all("td")] for row in nonempty(read(result()._repr_html_()).all("tr"))]
    assert ["accuracy (test)", "0.9071", "0.8963", "\N{MINUS SIGN}0.0108"] in cells
    cells = [[cell.text for cell in row.all("td")] for row in nonempty(read(plan()._repr_html_()).all("tr"))]
    assert ["weights", "300", "about 1:00"] in cells
    assert ["latency_ms", "1.5", "", "1"] in cells
    cells = [[cell.text for cell in row.all("td")] for row in nonempty(read(latency()._repr_html_()).all("tr"))]
    assert ["result", "0.617 ms", "0.740", "0.555", "0.512", "0.480 to 0.540"] in cells
    page = read(inspect_program(program(blocks=80))._repr_html_())
    assert "more" in page.text
    assert "blocks.1.0" in page.text


def hostile_inspection() -> Inspection:
    return inspect_program(dataclasses.replace(hostile_program(), notes=("<script>",)))


HOSTILE: dict[str, Callable[[], object]] = {
    "result": lambda: Poison(keys=True)(result()),
    "evolved": lambda: Poison(keys=True)(evolved()),
    "layers": lambda: Poison(keys=False)(with_hostile_layers()),
    "inspection": hostile_inspection,
    "plan": lambda: Poison(keys=True)(plan()),
    "latency": lambda: Poison(keys=True)(latency()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_breaks_out_of_no_card(name: str):
    given = HOSTILE[name]()
    page = given._repr_html_()
    tags = {e.tag for e in nonempty(read(page).walk())}
    known = {e.tag for make in SHOWN.values() for e in read(make()._repr_html_()).walk()} | {"ul", "li", "g", "title"}
    assert tags <= known
    assert not COMMANDS.search(page)
    assert not COMMANDS.search(repr(given))
    page.encode()


DRAWN = {"widths": result, "training": result, "gates": result, "pareto": evolved, "evolution": evolved}


def test_every_figure_is_drawn_here():
    assert DRAWN.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("poisoned", [False, True])
def test_figures_are_documents_without_scripts(name: str, poisoned: bool, tmp_path: Path):
    given = DRAWN[name]()
    figure = (Poison(keys=True)(given) if poisoned else given).plot(name)
    assert isinstance(figure, Figure)
    root = ET.fromstring(figure.save(tmp_path / "new" / f"{name}.svg").read_text("utf-8"))
    names = {e.tag.partition("}")[2] for e in nonempty(list(root.iter()))}
    assert names <= {"svg", "rect", "text", "path", "g", "title"}
    assert root.get("aria-label")
    assert not COMMANDS.search(figure.svg)
    for element in nonempty(list(root.iter())):
        places = [float(element.get(axis, 0)) for axis in ("x", "y", "width", "height")]
        assert all(-1 <= place <= 2000 for place in places), element.attrib


def texts(figure: Figure) -> list[str]:
    return [e.text or "" for e in ET.fromstring(figure.svg).iter() if e.tag.endswith("text")]


def test_figures_say_what_the_report_says():
    shown = texts(result().plot("widths"))
    assert "stem" in shown
    assert "16 \N{RIGHTWARDS ARROW} 8" in shown
    shown = texts(result().plot("training"))
    assert {"Training loss", "Validation accuracy", "Learning rate", "architecture", "fine-tune", "20 steps"} <= set(
        shown
    )
    assert "Of 6 gates, 2 closed, 1 undecided and 3 open" in texts(result().plot("gates"))
    assert {"winner", "start"} <= set(texts(evolved().plot("pareto")))


def test_the_pictures_of_an_inspection():
    shown = texts(inspection().plot())
    assert "MACs of each layer" in shown
    assert {"stem", "blocks.0.0"} <= set(shown)
    assert [units for units in texts(inspection().plot("widths")) if units == "16"]
    with pytest.raises(SurgeryError, match=r"plot\('layers'\): no figure has this name; use one of: 'macs', 'widths'"):
        inspection().plot("layers")


def test_many_layers_are_columns():
    deep = program(blocks=MAX_ROWS + 10)
    figure = result(original=deep, program=deep).plot("widths")
    assert figure.height < 300
    assert f"{MAX_ROWS + 12} layers, in the order in which they run" in texts(figure)


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        (
            result,
            "trainings",
            "did you mean 'training'.* use one of: 'widths', 'training', 'gates', 'pareto', 'evolution'",
        ),
        (result, 3, "use one of: 'widths'|must be"),
        (
            result,
            "pareto",
            "only the method ectonas trains networks to compare; use one of: 'widths', 'training', 'gates'",
        ),
        (lambda: result(gates=(), history=()), "gates", "only the method dnal learns gates; use one of: 'widths'$"),
        (lambda: result(history=()), "training", "nothing was trained"),
    ],
)
def test_a_picture_that_there_is_not_is_refused_with_the_list(given: Callable[[], Result], name: object, said: str):
    with pytest.raises(SurgeryError, match=said):
        given().plot(name)


def test_a_loaded_result_is_shown_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result().save(tmp_path / "saved")
    loaded = fxsurgery.load(tmp_path / "saved")
    monkeypatch.setattr("fxsurgery.report.figures.layers", lambda *_: pytest.fail("analyzed"))
    monkeypatch.setattr("fxsurgery.report.notebook.layers", lambda *_: pytest.fail("analyzed"))
    assert "accuracy (test)" in loaded._repr_html_()
    assert repr(loaded)


def test_printing_shows_the_page():
    assert str(inspection()).startswith("5,156 parameters")
    assert str(plan()).startswith("method: dnal")
    assert "p50 ms" in str(latency())
