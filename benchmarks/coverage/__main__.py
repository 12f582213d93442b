"""Capture, shrink and prove many models, compared with two other tools: `python -m benchmarks.coverage`.

Every (model, tool) runs in a process of its own, on one thread and under limits, and leaves a line in
`benchmarks/runs/coverage.jsonl`; the last line of a pair counts. At the end, or with `--table` alone, the table goes to
`benchmarks/results/coverage.md`, with all rows in `coverage.json`.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.coverage import report
from benchmarks.coverage.child import TOOLS
from benchmarks.coverage.record import Row
from benchmarks.coverage.samples import LISTS, Sample, listed
from benchmarks.coverage.sweep import Settings, sweep

QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
"""One thread each, and silence: set before the libraries are loaded."""

RUNS = Path(__file__).parents[1] / "runs" / "coverage.jsonl"


def main() -> None:
    """Run the requested pairs, then write the table."""
    options = _options()
    if not options.table:
        settings = Settings(
            options.ratio, options.seed, options.limit, 1 if options.memory else options.jobs, _commit()
        )
        samples = listed(options.lists, "^torchvision/resnet50$" if options.memory else options.only)
        known = read(options.runs) if options.resume else []
        _run(todo(samples, options.tools, known), settings, options.runs)
    rows = [row for row in read(options.runs) if row.model.partition("/")[0] in options.lists]
    print(report.write(rows, options.results) if rows else f"{options.runs} has no rows of these lists")


def read(path: Path) -> list[Row]:
    """The rows of a run file, the last of each pair, in the order in which the lists have them."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    last = {(row.model, row.tool): row for row in map(Row.read, lines)}
    lists, tools = list(LISTS), list(TOOLS)

    def place(row: Row) -> tuple[int, str, int]:
        return lists.index(row.model.partition("/")[0]), row.model, tools.index(row.tool)

    return sorted(last.values(), key=place)


def todo(samples: Sequence[Sample], tools: Sequence[str], known: Sequence[Row]) -> list[tuple[Sample, str]]:
    """The pairs that are not among the `known` rows, tools within models."""
    done = {(row.model, row.tool) for row in known}
    return [(sample, tool) for sample in samples for tool in tools if (sample.name, tool) not in done]


def _run(pairs: Sequence[tuple[Sample, str]], settings: Settings, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    began, left = time.monotonic(), len(pairs)
    print(f"{left} pairs, {settings.jobs} at a time, {settings.limit_s} CPU-s each", flush=True)
    with path.open("a", encoding="utf-8") as file:
        for done, row in enumerate(sweep(pairs, settings), 1):
            file.write(row.line() + "\n")
            file.flush()
            ahead = (time.monotonic() - began) / done * (left - done) / 60
            reason = f" ({row.reason})" if row.reason else ""
            print(f"{row.model} {row.tool}: {row.status}{reason}; about {ahead:.0f} min left", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="models whose list/name this matches")
    parser.add_argument("--lists", type=_choice(LISTS), default=list(LISTS), help=f"of {','.join(LISTS)}")
    parser.add_argument("--tools", type=_choice(TOOLS), default=list(TOOLS), help=f"of {','.join(TOOLS)}")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument(
        "--limit", type=int, default=Settings.limit_s, help="CPU seconds a pair, and for each check after the proof"
    )
    parser.add_argument("--ratio", type=float, default=Settings.ratio, help="fraction of the units to remove")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--resume", action="store_true", help="skip the pairs that the run file has")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--memory", action="store_true", help="only resnet50, alone, for its peak memory")
    parser.add_argument("--runs", type=Path, default=RUNS, help="the run file")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where the table goes")
    options = parser.parse_args()
    missing = [tool for tool in options.tools if find_spec(tool.replace("-", "_")) is None]
    if missing and not options.table:
        parser.error(
            f"{missing[0]} is not installed: pip install -c constraints.txt '.[rivals]', or leave it out with --tools"
        )
    return options


def _choice(known: dict[str, str]) -> "argparse._ActionType":
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def _commit() -> str:
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in QUIET.items()):
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.coverage", *sys.argv[1:]], {**os.environ, **QUIET})
    main()
