"""A run directory, from which a killed run resumes to the same result.

    config.json      settings of the run, hashes of the model, and the environment
    journal.jsonl    finished stages, measured values and the end, in order
    stages/          weights of each finished stage, and the last snapshot of each unfinished one
    best/            best model so far within the budget
    result/          the result, for `fxsurgery.load`
    report.html      the result as an HTML page
    logs/            output of loggers

A search is a function of its settings and seed, so it is resumed by running it again: each finished stage returns its
recorded weights, each measured value is read from the journal, and an unfinished stage continues from its last
snapshot. Records must be recalled in the order in which they were written; anything else is an error. Stages that are
trained at the same time (`places`) are numbered in the order of their names and recorded as they finish.

One run at a time works in a directory: see `fxsurgery.runs.lock`. The processes that it starts for single stages write
their snapshots only. In a distributed run, the main process alone reads and writes, and sends the values to the others.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import nn

from fxsurgery.errors import RunError
from fxsurgery.files import writing
from fxsurgery.runs.journal import Journal, Record
from fxsurgery.runs.layout import JOURNAL, REPORT, RESULT, STAGES, begin, require_ours, require_writable
from fxsurgery.runs.lock import Lock
from fxsurgery.runs.records import require_known
from fxsurgery.runs.result_files import changed, checksums, clear_away
from fxsurgery.runs.stage_store import StageStore, read_state, write_state
from fxsurgery.training.rank_zero import from_rank_zero
from fxsurgery.training.snapshot import Checkpointer, put_back, tensors_of

T = TypeVar("T")

SNAPSHOT_SECONDS = 30.0
"""Smallest interval between two snapshots of a stage."""


@dataclass(eq=False)
class RunDir:
    """Records what a run does, and recalls what it did before. Without a path it records nothing."""

    path: Path | None = None
    journal: Journal | None = None
    notes: list[str] = field(default_factory=list)
    _recalled: list[Record] = field(default_factory=list)
    """Journal records that are not recalled yet."""
    _number: int = 0
    lock: Lock | None = None
    """The lock on the directory; in the main process only."""

    def __enter__(self) -> Self:
        if self.lock is not None:
            self.lock.working = True
        return self

    def __exit__(self, *_: object) -> None:
        """Release the directory."""
        if self.lock is not None:
            self.lock.release()

    @classmethod
    def open(cls, path: str | Path, asked: Mapping[str, Any], *, resume: bool) -> Self:
        """Open the directory of a run, for a new run or to resume the one that is there.

        Args:
            path: the directory, which is created if needed.
            asked: settings of the run, as plain JSON.
            resume: whether to resume a run that is there.

        Raises:
            RunError: it cannot be written to, holds something else, or a run that is not to be resumed, or that
                asked for something else; another process is at it.
        """
        path, locks = Path(path), list[Lock]()

        def opened() -> tuple[list[str], Journal]:
            require_writable(path)
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            require_ours(path)
            locks.append(Lock(path))
            notes, journal = begin(path, asked, resume=resume), Journal(path / JOURNAL)
            require_known(journal)
            return notes, journal

        try:
            notes, journal = from_rank_zero(opened)
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return cls(path, journal, notes, list(journal.records), lock=next(iter(locks), None))

    @property
    def done(self) -> int:
        """Number of journal records that are not recalled yet."""
        return len(self._recalled)

    def recall(self, name: str, compute: Callable[[], T], is_valid: Callable[[Any], bool] = lambda _: True) -> T:
        """Return the recorded value of this point of the run, or compute and record it.

        Args:
            name: name of the value.
            compute: returns the value, as plain JSON.
            is_valid: whether a recorded value is one that `compute` can return.

        Raises:
            RunError: the journal has another record at this point.
        """
        self._number += 1

        def recalled() -> T:
            record = self._next("value", name)
            if record is None:
                value = compute()
                self._note({"kind": "value", "name": name, "value": value})
                return value
            if not is_valid(record["value"]):
                raise RunError(f"{self.path}: the journal's {name!r} is not of its type; start in another directory")
            recorded: T = record["value"]
            return recorded

        return from_rank_zero(recalled)

    def stage(self, name: str, model: nn.Module, work: Callable[[Checkpointer | None], list[Any]]) -> list[Any]:
        """Train `model` in place, or load the recorded weights if the stage was finished before.

        Args:
            name: name of the stage.
            model: the model.
            work: trains the model and returns records, as plain JSON. Its argument keeps the snapshots.

        Returns:
            The records of the stage.
        """
        [place] = self.places([name])
        if place.record is not None:
            put_back(model, place.weights())
            return list(place.record["records"])
        records = work(place.keeper())
        if self.path is not None:
            place.finish(records, tensors_of(model))
        return records

    def places(self, names: Sequence[str]) -> list[StageStore]:
        """Return the stores of stages that finish in any order; nothing else may be recorded until the last has.

        Args:
            names: names of the stages, all different, in the order in which their files are numbered.

        Raises:
            RunError: the journal has another record at this point.
        """
        recalled = from_rank_zero(lambda: self._recalled_of(names))
        return [self._place(name, recalled.get(name)) for name in names]

    def _place(self, name: str, record: Record | None) -> StageStore:
        self._number += 1
        if self.path is None:
            return StageStore(name, self._note)
        stem = self.path / STAGES / f"{self._number:03}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        place = StageStore(name, self._note, stem, Snapshots, record)
        if record is not None:
            from_rank_zero(place.clean)
        return place

    def _recalled_of(self, names: Sequence[str]) -> dict[str, Record]:
        """Return the records of these stages that are not recalled yet, by name."""
        found, wanted = dict[str, Record](), set(names)
        while self._recalled and wanted:
            record = self._recalled.pop(0)
            name = record.get("name")
            if record.get("kind") != "stage" or name not in wanted:
                raise self._other(record, "stage", next(n for n in names if n in wanted))
            wanted.remove(name)
            found[name] = record
        return found

    def finish(self, save: Callable[[Path], str | None], tell: Callable[[str], None] = lambda _: None) -> str | None:
        """Save the result, once, and again if its files were changed or removed.

        Args:
            save: writes the result and its page to a directory and returns a note.
            tell: called with a message if files are written again.

        Returns:
            The note of `save`.
        """
        if self.path is None:
            return None
        path = self.path

        def end() -> str | None:
            record = self._next("end", RESULT)
            while self._recalled:  # the result was written again before
                record = self._next("end", RESULT)
            if record is not None:
                if (lost := changed(path, record["files"])) is None:
                    note: str | None = record["note"]
                    return note
                tell(f"{path / lost} is missing or changed: the result is written again")
                clear_away(path, RESULT, record["files"])
            note = save(path / RESULT)
            self._note({"kind": "end", "name": RESULT, "note": note, "files": checksums(path, (RESULT, REPORT))})
            return note

        return from_rank_zero(end)

    def _next(self, kind: str, name: str) -> Record | None:
        """Return the next record that is not recalled yet; `None` if the run did not get this far."""
        if not self._recalled:
            return None
        record = self._recalled.pop(0)
        if (record.get("kind"), record.get("name")) != (kind, name):
            raise self._other(record, kind, name)
        return record

    def _other(self, record: Record, kind: str, name: str) -> RunError:
        was = f"{record.get('kind')} {record.get('name')!r}"
        return RunError(
            f"{self.path}: the journal has {was} where this run has {kind} {name!r}; another version or another model "
            "wrote it. Start in another directory"
        )

    def _note(self, record: Record) -> None:
        if self.journal is not None:
            self.journal.append(record)


class Snapshots:
    """Keeps the last snapshot of a stage in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = time.monotonic()

    def last(self) -> Mapping[str, Any] | None:
        """Return the snapshot to resume from."""
        found: Mapping[str, Any] | None = from_rank_zero(self._read)
        return found

    def wants(self, step: int, steps: int) -> bool:
        """Return True if the snapshot interval has elapsed; the end of a stage is saved anyway."""
        if step >= steps:
            return False
        return from_rank_zero(lambda: time.monotonic() - self._last >= SNAPSHOT_SECONDS)

    def keep(self, snapshot: Mapping[str, Any]) -> None:
        """Replace the last snapshot."""
        from_rank_zero(lambda: write_state(self.path, snapshot))
        self._last = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.path):
            return None
        return read_state(self.path, "delete it to train the stage again, to the same result")
