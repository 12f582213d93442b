"""Startup time: CPU time of fresh processes, relative to that of `import torch`.

The processes are interleaved; the fastest round of each counts, so that bytecode is cached.

    python -m benchmarks.startup_speed
"""

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version

PROCESSES = {
    "import torch": ["-c", "import torch"],
    "import fxsurgery": ["-c", "import fxsurgery"],
    "from fxsurgery import *": ["-c", "from fxsurgery import *"],
    "fxsurgery --help": ["-m", "fxsurgery", "--help"],
    "fxsurgery optimize --help": ["-m", "fxsurgery", "optimize", "--help"],
}


def main() -> None:
    """Print a row for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    best = dict.fromkeys(PROCESSES, float("inf"))
    for _ in range(rounds + 1):  # one more, which writes the bytecode
        for name, arguments in PROCESSES.items():
            best[name] = min(best[name], cpu_seconds(arguments))
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, ", end="")
    print(f"torch {version('torch')}: python -m benchmarks.startup_speed {shlex.join(sys.argv[1:])}\n")
    print("| process | CPU s | more than torch |")
    print("|---|---|---|")
    for name, seconds in best.items():
        print(f"| `{name}` | {seconds:.2f} | {seconds - best['import torch']:+.2f} |")


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one process of this interpreter."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
