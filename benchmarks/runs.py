"""Completed runs are not repeated: their figures are stored under `runs/`, which may be deleted."""

import json
from collections.abc import Callable
from pathlib import Path

RUNS = Path(__file__).parent / "runs"
Figures = dict[str, float]


def once(key: str, run: Callable[[], Figures]) -> Figures:
    """Return the figures of `run`, or those that are stored under this key."""
    path = RUNS / f"{key}.json"
    if path.exists():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    RUNS.mkdir(exist_ok=True)
    figures = run()
    path.write_text(json.dumps(figures))
    return figures
