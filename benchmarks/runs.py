"""Runs that were made before are not made again: their figures are kept under `runs/`, which may be deleted."""

import json
from collections.abc import Callable
from pathlib import Path

RUNS = Path(__file__).parent / "runs"
Figures = dict[str, float]


def once(key: str, run: Callable[[], Figures]) -> Figures:
    """What `run` gives, or gave when it was last run under this key."""
    path = RUNS / f"{key}.json"
    if path.exists():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    RUNS.mkdir(exist_ok=True)
    figures = run()
    path.write_text(json.dumps(figures))
    return figures
