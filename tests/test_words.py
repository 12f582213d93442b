"""The text of package, pages and examples is standard American technical English."""

from pathlib import Path

import pytest

import words
from nonempty import nonempty

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile")


@pytest.mark.parametrize("place", ["fxsurgery", "docs", "examples", "benchmarks", "tools", *PAGES])
def test_no_british_spelling_and_no_dialect(place: str):
    files = nonempty(words.files_in(ROOT / place))
    assert [str(found) for file in files for found in words.findings(file)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""Of the stages, the last."""\n', "opens with 'Of the'"),
        ('"""What it holds."""\n', "opens with 'What '"),
        ("# the colour of a node\n", "colour"),
        ("initialised = 1\n", "initialised"),
        ('x = "unless said otherwise"\n', "unless said"),
        ('x = f"{1}: nobody reads it"\n', "nobody"),
    ],
)
def test_a_word_that_is_avoided_is_found(tmp_path: Path, text: str, found: str):
    file = tmp_path / "module.py"
    file.write_text(text, encoding="utf-8")
    assert any(found in finding.words for finding in words.findings(file))


def test_plain_text_passes(tmp_path: Path):
    file = tmp_path / "module.py"
    file.write_text('"""Return the units that `told` names."""\n\nanalyzed = "the color"\n', encoding="utf-8")
    assert list(words.findings(file)) == []
