"""`make demo` prints a line before everything that takes time, and says what it installs."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = """\
Obtaining file:///somewhere
Collecting torch==2.15.0 (from fxsurgery==0.1)
  Downloading torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (30 kB)
  Downloading torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl (888.1 MB)
  Using cached nvidia_cublas-13.4.1.3-py3-none-any.whl (404.9 MB)
  Downloading typer-0.20.0-py3-none-any.whl (47 kB)
Installing collected packages: typer, torch, fxsurgery
"""
STEPS = [
    "looking up the packages", "downloading torch 2.15.0 (888.1 MB)",
    "using the cached copy of nvidia_cublas 13.4.1.3 (404.9 MB)", "unpacking 3 packages",
]  # fmt: skip


def installed(folder: Path, code: int) -> subprocess.CompletedProcess[str]:
    """What `tools/install.py` prints where pip prints `PIP` and ends with `code`."""
    (folder / "pip.py").write_text(
        f"import sys\nprint({PIP!r}, end='')\nprint('pip takes', sys.argv[1:])\nsys.exit({code})\n"
    )
    command = [sys.executable, str(ROOT / "tools" / "install.py"), "--editable", "."]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_each_large_download_has_a_line_with_its_size(tmp_path: Path):
    done = installed(tmp_path, 0)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "installing fxsurgery into .venv with PyTorch, ONNX Runtime and the rest of what it needs"
    assert "GB" in lines[1]
    assert [line.strip() for line in lines[2:-1]] == STEPS
    assert lines[-1].startswith("  installed in ")


def test_a_failing_pip_is_shown_whole_and_its_exit_code_kept(tmp_path: Path):
    done = installed(tmp_path, 3)
    assert done.returncode == 3
    assert PIP in done.stdout
    assert "pip takes ['install', '--progress-bar', 'off', '--editable', '.']" in done.stdout


def test_a_silent_pip_is_reported_on_meanwhile(monkeypatch: pytest.MonkeyPatch, capsys):
    import install

    monkeypatch.setattr(install, "SILENT_SECONDS", 0.0)
    reporter = install.Reporter()
    reporter.start("unpacking 3 packages")

    def wait(_seconds: float) -> bool:
        ended.append(True)
        return len(ended) > 2

    ended = list[bool]()
    monkeypatch.setattr(reporter._ended, "wait", wait)
    reporter.watch()
    assert capsys.readouterr().out.count("still unpacking 3 packages (") == 2


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the Makefile, with a Python that prints what it is called for and makes an environment of itself."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    script = tmp_path / "stub"
    script.write_text(
        '#!/bin/sh\necho "RUNS $*"\n'
        '[ "$2" = venv ] || exit 0\nmkdir -p .venv/bin\n'
        f"cp {script} .venv/bin/python\ncp {script} .venv/bin/fxsurgery\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return tmp_path


def made(project: Path) -> list[str]:
    command = ["make", "--no-print-directory", "demo", f"PYTHON={project / 'stub'}"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_demo_prints_a_line_before_each_thing_that_it_waits_for(project: Path):
    lines = made(project)
    assert lines[0] == "creating the environment .venv (a few seconds)"
    assert [line.split()[1] for line in lines if line.startswith("RUNS ")] == ["-c", "-m", "tools/install.py", "demo"]
    ready = lines.index("fxsurgery is installed in .venv; running its demo, which takes about a minute")
    assert lines[ready + 1] == "RUNS demo"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_demo_says_so_if_nothing_is_to_be_installed(project: Path):
    made(project)
    lines = made(project)
    assert lines == ["fxsurgery is installed in .venv; running its demo, which takes about a minute", "RUNS demo"]
