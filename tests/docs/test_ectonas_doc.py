"""The page on ECToNAS lists the existing operations, settings and names, with their figures."""

import re
from dataclasses import fields
from pathlib import Path

from fxsurgery import Ectonas
from fxsurgery.execution.job_runner import Executor
from fxsurgery.searchers.common.moves import OPERATIONS
from fxsurgery.searchers.common.trials import SearchRecord, Trial
from nonempty import nonempty

PAGE = (Path(__file__).parents[2] / "docs" / "ectonas.md").read_text(encoding="utf-8")


def rows(after: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    found = PAGE.split(after)[1]
    table = re.search(r"(?:^\|.*\n)+", found, re.MULTILINE).group().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_every_operation_is_told_with_its_epochs_to_recover():
    told = {name.strip("` "): float(row[-1]) for row in rows("## The operations") for name in row[0].split(",")}
    assert told == {name: operation.recuperation for name, operation in OPERATIONS.items()}


def test_the_settings_that_it_names_are_there_with_these_defaults():
    defaults = {f.name: f.default for f in fields(Ectonas)}
    told = {name: float(value) for name, value in re.findall(r"`(\w+)=([\d.]+)`", PAGE)}
    assert all(told[name] == defaults[name] for name in ("channels", "units", "change"))
    named = {"places", "rounds", "match_epochs", "parents", "rolling_epochs", "weights_epochs", "most_params"}
    assert all(f"`{name}`" in PAGE for name in named)
    assert named <= set(defaults)
    assert f"`most_growth` ({defaults['most_growth']:.0%}".replace("%", " %") in PAGE


def test_executors_and_fields_of_the_result_are_there():
    assert [row[0].strip('`"') for row in rows("## Several networks at once")] == nonempty(Executor.__args__)
    shown = next(row for row in rows("## The result") if "trials" in row[0])[1]
    assert set(nonempty(re.findall(r"`(\w+)`", shown))) <= {f.name for f in fields(Trial)}
    assert {"spent", "rejected", "duplicates"} <= {f.name for f in fields(SearchRecord)}
