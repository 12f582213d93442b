"""The page about the command line says what is there."""

import re
from dataclasses import fields
from pathlib import Path

import fxsurgery
from fxsurgery.config import read
from fxsurgery.searchers.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_config_file_of_the_page_is_understood(tmp_path: Path):
    text, evolving = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    config, settings = read(tmp_path / "run.toml", {})
    assert config.budget == fxsurgery.Budget(macs=0.5, params=1_200_000)
    assert (settings.finetune_epochs, callable(settings.optimizer)) == (30, True)
    (tmp_path / "evolving.toml").write_text(f'model = "nets.py:Net"\n{evolving}', encoding="utf-8")
    config, settings = read(tmp_path / "evolving.toml", {})
    assert config.spend == fxsurgery.Spend(epochs=300, seconds=3600)
    assert isinstance(settings, METHODS["ectonas"].settings)


def test_every_setting_of_every_method_is_on_the_page():
    [table] = re.findall(r"^\| method \| settings \|\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    named = {name: set[str]() for name in METHODS}
    for row in table.splitlines():
        _, whose, settings, _ = row.split("|")
        for name in re.findall(r"`(\w+)`", whose) or METHODS:
            named[name] |= set(re.findall(r"`(\w+)`", settings))
    assert named == {name: {f.name for f in fields(method.settings)} for name, method in METHODS.items()}
