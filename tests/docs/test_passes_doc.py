"""The page of passes and its pictures: all there, and what `tools/draw_passes.py` gives."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import draw_passes
from fxsurgery.passes import ALL
from nonempty import nonempty

DOCS = Path(__file__).parents[2] / "docs"
PROSE = DOCS.parent / "tools" / "passes_prose.md"
NUMBER = re.compile(r"-?\d+\.\d+(e[-+]\d+)?")
SVG = "{http://www.w3.org/2000/svg}"
STALE = "run: python tools/draw_passes.py"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The page and the pictures, made anew."""
    return draw_passes.pages()


def committed(path: str) -> str:
    return (DOCS / path).read_text(encoding="utf-8")


def shown(svg: str) -> list[tuple[str, tuple[str, ...]]]:
    """The boxes of a picture, each with its state and its lines."""
    groups = ET.fromstring(svg).iter(f"{SVG}g")
    texts = [
        (g.get("class"), tuple(t.text or "" for t in g.findall("{http://www.w3.org/2000/svg}text"))) for g in groups
    ]
    return [(state, lines) for state, lines in texts if state]


def test_the_page_is_what_the_script_gives(made):
    assert NUMBER.sub("#", committed("passes.md")) == NUMBER.sub("#", made["passes.md"]), STALE


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_picture_is_what_the_script_gives(made, name: str):
    assert shown(committed(f"images/{name}.svg")) == shown(made[f"images/{name}.svg"]), STALE


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_pass_has_a_section_a_picture_and_prose(name: str):
    page, written = committed("passes.md"), PROSE.read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    assert f"(images/{name}.svg)" in page
    assert f"\n## {name}\n" in written, "say in tools/passes_prose.md what it is good for"


def test_nothing_is_left_of_passes_that_are_gone():
    assert {path.stem for path in (DOCS / "images").glob("*.svg")} == set(nonempty(ALL))
    assert set(re.findall(r"^## (.+)$", PROSE.read_text(encoding="utf-8"), re.MULTILINE)) == set(nonempty(ALL))


@pytest.mark.parametrize("name", sorted(ALL))
def test_each_picture_shows_a_change(name: str):
    states = {state for state, _ in shown(committed(f"images/{name}.svg"))}
    assert states & {"changed", "new", "removed"}


def test_layers_of_a_picture_run_downwards_and_boxes_do_not_overlap(made):
    for name, svg in nonempty((name, text) for name, text in made.items() if name.endswith(".svg")):
        for panel in nonempty(ET.fromstring(svg).findall(f"{SVG}g")):
            rects = [tuple(int(r.get(k)) for k in ("x", "y", "width", "height")) for r in panel.iter(f"{SVG}rect")]
            for (x, y, width, height), (other_x, other_y, *_) in nonempty(itertools.combinations(rects, 2)):
                beside = not x <= other_x < x + width
                below = not y <= other_y < y + height
                assert beside or below, f"{name}: boxes overlap"
