"""Completion in the shell: the commands, their flags, and the values that a flag takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxsurgery.cli import app
from fxsurgery.cli.app import SUMMARIES


def completed(words: str) -> list[str]:
    """What bash is offered for the last of these words."""
    shell = {"_FXSURGERY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return CliRunner().invoke(app, [], prog_name="fxsurgery", env=shell).stdout.split()


def test_commands_are_offered():
    assert completed("fxsurgery ") == list(SUMMARIES)
    assert completed("fxsurgery op") == ["optimize"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fxsurgery optimize --run", "--run-dir"),
        ("fxsurgery optimize nets:Net --dry", "--dry-run"),
        ("fxsurgery export --fix", "--fixed-batch"),
        ("fxsurgery demo --ma", "--macs"),
    ],
)
def test_flags_are_offered(words: str, offered: str):
    assert completed(words) == [offered]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fxsurgery optimize --method ", {"dnal", "prune", "ectonas"}),
        ("fxsurgery optimize --method pr", {"prune"}),
        ("fxsurgery optimize --budget ", {"params=", "macs=", "latency_ms="}),
        ("fxsurgery optimize --spend s", {"seconds="}),
        ("fxsurgery optimize --set gree", {"greediness="}),
        ("fxsurgery optimize --mixed-precision b", {"bf16"}),
        ("fxsurgery export a b --exporter l", {"legacy"}),
    ],
)
def test_values_are_offered(words: str, offered: set[str]):
    assert set(completed(words)) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_shown(shell: str):
    root = str(Path(__file__).parents[2])
    code = "from fxsurgery.cli import app; app(prog_name='fxsurgery')"
    command = [sys.executable, "-c", code, "--show-completion", shell]
    environment = {**os.environ, "PYTHONPATH": root, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "_FXSURGERY_COMPLETE" in done.stdout


def test_completing_the_demo_announces_nothing():
    shell = {"_FXSURGERY_COMPLETE": "complete_bash", "COMP_WORDS": "fxsurgery demo --", "COMP_CWORD": "2"}
    assert CliRunner().invoke(app, [], prog_name="fxsurgery", env=shell).stderr == ""
