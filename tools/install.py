"""Install this project into a virtual environment and print a line for each thing that takes time.

Run it with the Python of that environment: `.venv/bin/python tools/install.py --editable ".[dev]"`; all arguments go
to `pip install`. Of pip's output it prints the large downloads with their sizes; a failure prints what pip said.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

SILENT_SECONDS, MOST_SILENT_SECONDS = 15.0, 60.0
"""Time without a line after which one says that a step goes on: at first, and at most, as it doubles each time."""
LARGE = re.compile(r"\s*(Downloading|Using cached) (\S+?)-([\d.]+)\S*\.(?:whl|tar\.gz) \((.+? [MG]B)\)")
"""A file of a megabyte or more, as pip announces it before it downloads it."""
UNPACKED = re.compile(r"Installing collected packages: (.+)")


class Reporter:
    """Prints lines at once, and one when nothing was printed for a while."""

    def __init__(self) -> None:
        self._began = self._printed = time.monotonic()
        self._doing, self._patience = "pip is starting", SILENT_SECONDS
        self._ended = threading.Event()

    def say(self, text: str) -> None:
        """Print a line."""
        self._printed = time.monotonic()
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def start(self, text: str) -> None:
        """Print a line about what begins, and repeat it while it lasts."""
        self._doing, self._patience = text, SILENT_SECONDS
        self.say(f"  {text}")

    def watch(self) -> None:
        """Print a line whenever nothing was printed for a while, until `stop` is called."""
        while not self._ended.wait(1.0):
            if time.monotonic() - self._printed >= self._patience:
                self._patience = min(2 * self._patience, MOST_SILENT_SECONDS)
                self.say(f"  still {self._doing} ({self.seconds:.0f} s so far)")

    def stop(self) -> None:
        """End `watch`."""
        self._ended.set()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began


def steps(lines: Iterable[str]) -> Iterator[str]:
    """Yield a line for each step of pip's output that takes time.

    Example:
        >>> list(steps(["Collecting torch", "  Downloading torch-2.15.0-cp311-x.whl (888.1 MB)"]))
        ['looking up the packages', 'downloading torch 2.15.0 (888.1 MB)']
    """
    is_first = True
    for line in lines:
        if is_first and line.startswith(("Obtaining", "Collecting", "Looking", "Processing")):
            is_first = False
            yield "looking up the packages"
        if found := LARGE.match(line):
            how = "downloading" if found[1] == "Downloading" else "using the cached copy of"
            yield f"{how} {found[2]} {found[3]} ({found[4]})"
        if found := UNPACKED.match(line):
            yield f"unpacking {found[1].count(',') + 1} packages"


def install(arguments: Sequence[str]) -> int:
    """Run `pip install` with these arguments.

    Returns:
        The exit code of pip.
    """
    reporter, seen = Reporter(), list[str]()
    reporter.say("installing fxsurgery into .venv with PyTorch, ONNX Runtime and the rest of what it needs")
    reporter.say("  the first time this downloads 0.3 GB (macOS) to 4 GB (Linux with CUDA) and takes some minutes")
    watcher = threading.Thread(target=reporter.watch, daemon=True)
    watcher.start()
    command = [sys.executable, "-u", "-m", "pip", "install", "--progress-bar", "off", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as pip:
        if pip.stdout is not None:
            for step in steps(_kept(pip.stdout, seen)):
                reporter.start(step)
    reporter.stop()
    watcher.join()
    if pip.returncode:
        reporter.say("".join(["pip failed; this is its output:\n", *seen]).rstrip("\n"))
    else:
        reporter.say(f"  installed in {reporter.seconds:.0f} s")
    return pip.returncode


def _kept(lines: Iterable[str], seen: list[str]) -> Iterator[str]:
    for line in lines:
        seen.append(line)
        yield line


if __name__ == "__main__":
    sys.exit(install(sys.argv[1:]))
