"""Lines of files, found again."""

from pathlib import Path

import pytest

from fxsurgery.config.source_locations import Origins, line_of

TOML = """\
# seed = 9
model = "a:b"
seed = 1
budget.macs = 0.5

[settings]  # of the method
seed = 2
"quoted" = 3
optimizer = { name = "sgd", lr = 0.1 }

[settings.deeper]
lr = 1
"""

JSON = """\
{
  "model": "a:b",
  "budget": {"macs": 0.5},
  "settings": {
    "align": 4
  }
}
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [(("model",), 2), (("seed",), 3), (("budget", "macs"), 4), (("settings",), 6), (("settings", "seed"), 7),
     (("settings", "quoted"), 8), (("settings", "optimizer", "lr"), 9), (("settings", "deeper", "lr"), 12),
     (("nowhere",), None), (("example_shape", 0, 1), None)],
)  # fmt: skip
def test_the_line_of_an_entry_in_toml(place, line):
    assert line_of(TOML, place) == line


@pytest.mark.parametrize(
    ("place", "line"),
    [(("model",), 2), (("budget", "macs"), 3), (("settings",), 4), (("settings", "align"), 5), (("nowhere",), None)],
)
def test_the_line_of_an_entry_in_json(place, line):
    assert line_of(JSON, place, json=True) == line


def test_an_entry_is_told_by_the_flag_that_said_it_last():
    origins = Origins(Path("run.toml"), TOML, {"seed": 3, "settings": {"align": 4}, "leaf_modules": ["a:B"]})
    assert origins.tell(("seed",)) == "--seed"
    assert origins.tell(("settings", "align")) == "--set align"
    assert origins.tell(("settings", "seed")) == "run.toml, line 7: settings.seed"
    assert origins.tell(("model",)) == "run.toml, line 2: model"
    assert origins.tell(("leaf_modules", 0)) == "--leaf-module 0"


def test_without_a_file_everything_is_told_by_its_flag():
    assert Origins().tell(("batch_size",)) == "--batch-size"
    assert Origins().tell(()) == "the flags"
