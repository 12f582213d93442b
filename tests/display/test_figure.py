"""A figure is a document of its own: well-formed, without scripts or styles, readable on any background."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fxsurgery.display import Figure
from fxsurgery.display.figure import WIDTH, Box, element, fitted, text
from fxsurgery.errors import RunError
from nonempty import nonempty

MARKUP = "<script>alert('x')</script>&\"\x1b[2J\u202e\ud800"
FIGURE = Figure(
    f"title {MARKUP}", f"summary {MARKUP}", 50, text(1, 2, MARKUP) + element("path", d="M0 0H1", stroke="red")
)


def test_it_is_saved_as_a_document_with_a_background(tmp_path: Path):
    path = FIGURE.save(tmp_path / "new" / "picture.svg")
    root = ET.fromstring(path.read_text("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    back, *_ = root
    assert (back.tag.partition("}")[2], back.get("fill"), back.get("width")) == ("rect", "#ffffff", f"{WIDTH:g}")
    assert root.get("color") == "#1a2026"
    assert FIGURE._repr_svg_() == FIGURE.svg


def test_in_a_notebook_text_takes_the_color_around_it():
    root = ET.fromstring(FIGURE._repr_html_())
    assert root.get("color") == root.get("fill") == "currentColor"
    assert not [e for e in root if e.get("fill") == "#ffffff"]


@pytest.mark.parametrize("shown", [FIGURE.svg, FIGURE._repr_html_()], ids=["svg", "html"])
def test_text_is_escaped_and_commands_nothing(shown: str):
    names = [e.tag.partition("}")[2] or e.tag for e in ET.fromstring(shown).iter()]
    assert set(nonempty(names)) <= {"svg", "rect", "text", "path"}
    assert all(ord(c) >= 32 and c != "\u202e" for c in nonempty(shown))
    assert r"\x1b[2J" in shown


@pytest.mark.parametrize("name", ["picture.png", "picture", "svg"])
def test_other_formats_are_refused(tmp_path: Path, name: str):
    with pytest.raises(RunError, match=r"written as SVG; use a name that ends in \.svg"):
        FIGURE.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_paths_move_into_their_box():
    assert fitted("M0.00 0.00L1000.00 100.00", Box(10, 20, 500, 50), 1000, 100) == "M10.00 20.00L510.00 70.00"
    assert fitted("M500.00 50.00h0", Box(0, 0, 100, 10), 1000, 100) == "M50.00 5.00h0"


def test_its_repr_is_one_line():
    assert repr(Figure("Widths", "", 1, "")) == "<Figure 'Widths': shown by a notebook; .save('figure.svg') writes it>"
    assert repr(FIGURE).isprintable()
