"""Names of the user's things: found as they are, and told as what went wrong with them."""

import sys
from pathlib import Path

import pytest

from fxsurgery.cli.imports import called, named
from fxsurgery.errors import ConfigError, SourceError


def test_a_module_of_the_current_directory_is_found(here: Path):
    assert named("sample_nets:Net", "MODEL").__name__ == "Net"


def test_attributes_may_be_dotted(here: Path):
    assert named("sample_nets:Net.forward", "MODEL").__qualname__ == "Net.forward"


def test_a_file_is_found_by_its_path_and_imported_once(here: Path):
    folder = here / "deep"
    folder.mkdir()
    (folder / "sample_part.py").write_text("import sample_beside\nit = object()\n")
    (folder / "sample_beside.py").write_text("")
    assert named("deep/sample_part.py:it", "MODEL") is named("deep/sample_part.py:it", "--train-data")


def test_files_of_one_name_are_kept_apart(here: Path):
    for folder in ("a", "b"):
        (here / folder).mkdir()
        (here / folder / "sample_same.py").write_text(f"it = {folder!r}\n")
    assert [named(f"{folder}/sample_same.py:it", "MODEL") for folder in "aba"] == ["a", "b", "a"]


def test_a_file_never_takes_the_place_of_an_imported_module(here: Path):
    import json

    (here / "json.py").write_text("it = 1\n")
    assert named("json.py:it", "MODEL") == 1
    assert sys.modules["json"] is json
    del sys.modules[str(here / "json.py")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_nets", "'sample_nets' is neither a file here nor of the form module:name"),
        ("sample_nets.Net", "write sample_nets:Net"),
        ("sample_nets.py", "name what is in it: sample_nets.py:NAME"),
        (":Net", "is neither a file here"),
        ("sample_nets:", "is neither a file here"),
    ],
)
def test_a_text_that_names_nothing_is_told_the_form(here: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        named(text, "MODEL")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sample_none:Net",
            (
                "^MODEL: there is no module 'sample_none', neither here nor installed; "
                "install it, or run where it can be imported$"
            ),
        ),
        ("sample_none.py:Net", r"^MODEL: there is no file sample_none.py; name a file that is there$"),
        ("sample_nets:Nett", r"^MODEL: sample_nets has no 'Nett'; did you mean 'Net'\?$"),
        ("sample_nets.deeper:Net", "there is no module 'sample_nets.deeper'"),
    ],
)
def test_what_is_not_there_is_told(here: Path, text: str, message: str):
    with pytest.raises(SourceError, match=message):
        named(text, "MODEL")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "\n\nimport sample_missing\n",
            r"No module named 'sample_missing' \(broken.py, line 3: import sample_missing\)",
        ),
        ("import torch\ntorch.zeros(-1)\n", r"RuntimeError: .* \(broken.py, line 2: torch.zeros\(-1\)\)"),
        ("x = 1\ny = = 2\n", r"SyntaxError: .* \(broken.py, line 2\)"),
        ("import sys\nsys.exit('usage')\n", r"SystemExit: usage \(broken.py, line 2: sys.exit\('usage'\)\)"),
        ("raise ValueError('a\\nb')\n", r"ValueError: a b \(broken.py, line 1"),
    ],
)
@pytest.mark.parametrize("name", ["broken", "broken.py"])
def test_a_failing_import_names_the_users_line(here: Path, content: str, message: str, name: str):
    (here / "broken.py").write_text(content)
    with pytest.raises(SourceError, match=rf"^MODEL: cannot import {name}: .*{message}") as told:
        named(f"{name}:Net", "MODEL")
    assert "\n" not in str(told.value)


def test_a_failing_factory_names_the_users_line(here: Path):
    factory = named("sample_nets:failing", "MODEL")
    with pytest.raises(SourceError, match=r"ZeroDivisionError: .* \(sample_nets.py, line \d+: return 1 / scale\)"):
        called(factory, "sample_nets:failing", "MODEL", {"scale": 0})
