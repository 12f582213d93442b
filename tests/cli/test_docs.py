"""The page about the command line says what is there."""

import re
from dataclasses import fields
from pathlib import Path

import fxsurgery
from fxsurgery.config import read
from fxsurgery.searchers.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_config_file_of_the_page_is_understood(tmp_path: Path):
    [text] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    config, settings = read(tmp_path / "run.toml", {})
    assert config.to_budget() == fxsurgery.Budget(macs=0.5, params=1_200_000)
    assert (settings.finetune_epochs, callable(settings.optimizer)) == (30, True)


def test_every_setting_of_every_method_is_on_the_page():
    rows = dict(re.findall(r"^\| `?(\w+)`? \| (`align`.*|`architecture.*|`importance.*) \|$", PAGE, re.MULTILINE))
    named = {name: set(re.findall(r"`(\w+)`", row)) for name, row in rows.items()}
    assert {name: named["both"] | named[name] for name in METHODS} == {
        name: {f.name for f in fields(method.settings)} for name, method in METHODS.items()
    }
