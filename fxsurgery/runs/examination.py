"""Whether a run could start in a directory: the checks of `RunDir.open`, which change nothing."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxsurgery.runs.journal import Journal
from fxsurgery.runs.layout import JOURNAL, examine, require_ours, require_writable
from fxsurgery.runs.lock import FILE, Lock
from fxsurgery.runs.records import require_known
from fxsurgery.training.rank_zero import from_rank_zero


def require_startable(path: Path, requested: Mapping[str, Any], *, resume: bool) -> list[str]:
    """Refuse a directory that `RunDir.open` would refuse; nothing in it is changed.

    Args:
        path: the directory, which need not exist.
        requested: the settings of the run, as plain JSON.
        resume: whether to continue a run that is there.

    Returns:
        Notes on environment settings that differ from the recorded run.

    Raises:
        RunError: the directory cannot be written to, holds something else, a run that may not be resumed, or one that
            another process is working on.
    """

    def examined() -> list[str]:
        require_writable(path)
        if not path.exists():
            return []
        require_ours(path)
        if os.path.lexists(path / FILE):
            Lock(path).release()
        notes = examine(path, requested, resume=resume).notes
        require_known(Journal(path / JOURNAL, truncate=False))
        return notes

    return from_rank_zero(examined)
