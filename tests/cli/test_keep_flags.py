"""`--keep` and `--ratio`, and the same in a config file."""

import json
from pathlib import Path

import pytest


def plan(give, seen: list[str], *flags: str) -> tuple[int, str]:
    result = give("optimize", "sample_nets:Net", *seen, "--dry-run", *flags)
    return result.exit_code, " ".join(result.output.split())


def layers(give) -> list[str]:
    """The names of the layers that `inspect` shows as widths."""
    result = give("inspect", "sample_nets:Net", "--json", "--example-shape", "3,8,8")
    assert result.exit_code == 0, result.output
    return [width["name"] for width in json.loads(result.stdout)["widths"]]


def test_flags_and_file_fix_widths(here: Path, give, seen: list[str]):
    first, second, *_ = layers(give)
    code, text = plan(give, seen, "--keep", first, "--ratio", f"{second}=50%", "--set=align=1")
    assert code == 0, text
    assert f"kept at full width: {first}" in text
    assert f"units that stay by ratio: {second}" in text
    nested = f'keep = "{first}"\n[ratios]\n{second} = 0.5\n'
    (here / "run.toml").write_text(nested)
    code, again = plan(give, seen, "--config", "run.toml", "--set=align=1")
    assert code == 0, again
    notes = [part for part in text.split("note: ") if "full width" in part or "by ratio" in part]
    assert notes == [part for part in again.split("note: ") if "full width" in part or "by ratio" in part]


def test_a_flag_takes_the_place_of_the_file(here: Path, give, seen: list[str]):
    first, second, *_ = layers(give)
    (here / "run.toml").write_text(f'keep = ["{first}", "nothing-of-this-name"]\n')
    code, text = plan(give, seen, "--config", "run.toml", "--keep", second)
    assert code == 0, text
    assert f"kept at full width: {second}" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--keep", "nothing-of-this-name"], "--keep: no layer of the model is named 'nothing-of-this-name'"),
        (["--ratio", "layer"], "--ratio: 'layer' is not of the form layer=ratio; write it as layer4.*=0.5"),
        (["--ratio", "layer=half"], "--ratio: 'layer=half': 'half' is not an amount"),
        (["--ratio", "layer=2"], "2.0 for 'layer' is the fraction of the units that stays"),
        (["--ratio", "nothing-of-this-name=0.5"], "--ratio: no layer of the model is named 'nothing-of-this-name'"),
    ],
)
def test_mistakes_name_the_flag(here: Path, give, seen: list[str], flags: list[str], said: str):
    code, text = plan(give, seen, *flags)
    assert code != 0
    assert said in text


def test_a_file_with_a_ratio_that_is_no_number_names_the_line(here: Path, give, seen: list[str]):
    (here / "run.toml").write_text('[ratios]\n"layer4.*" = true\n')
    code, text = plan(give, seen, "--config", "run.toml")
    assert code != 0
    assert "run.toml, line" in text
