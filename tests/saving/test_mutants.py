"""Mutated saved results raise an error of this package or load an equal result, without side effects."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kept
import mutants
from evolutions import evolved
from fxsurgery.result import Result
from test_result import result

TESTS = Path(mutants.__file__).parent


def require_right(made: Result, folder: Path, *options: str) -> None:
    """Raise unless every mutant of a saved result is loaded as it should be."""
    made.save(folder / "saved")
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, mutants.__file__, str(folder / "saved"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{options[0]} of {options[0]} right, 0 faults" in done.stdout


@pytest.mark.parametrize("options", [("60", "0"), ("60", "1", "signed")])
def test_sixty_mutants_are_refused_or_equal(options: tuple[str, ...], tmp_path: Path) -> None:
    require_right(result("Plain"), tmp_path, *options)


@pytest.mark.parametrize("options", [("30", "4", "kept"), ("30", "5", "kept", "signed")])
def test_mutants_of_what_takes_code_of_the_model_are_refused_or_equal(options: tuple[str, ...], tmp_path: Path) -> None:
    require_right(kept.result(), tmp_path, *options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", [result, evolved])
@pytest.mark.parametrize("options", [("2000", "2"), ("2000", "3", "signed")])
def test_two_thousand_mutants_are_refused_or_equal(
    make: Callable[[], Result], options: tuple[str, ...], tmp_path: Path
) -> None:
    require_right(make(), tmp_path, *options)


def test_the_watch_hears_what_loading_should_not_do(tmp_path: Path) -> None:
    """Each kind of thing, done in a process of its own as a fault of loading would do it."""
    script = (
        "import os, subprocess, mutants\n"
        "watch = mutants.Watch(); watch.on = True\n"
        "import this_is_nowhere_else\n"
        "exec('1'); open('a', 'w').close(); subprocess.run(['true']); os.remove('a')\n"
        "watch.on = False\n"
        "print(sorted({seen.partition('(')[0] for seen in watch.seen}))\n"
    )
    (tmp_path / "this_is_nowhere_else.py").write_text("")
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), str(tmp_path)])
    env = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert all(event in done.stdout for event in ("exec", "import", "open", "os.remove", "subprocess.Popen")), (
        done.stdout
    )
