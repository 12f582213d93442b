"""A run directory: what a killed run goes on from, to the same end.

    config.json      what was asked for, and of what
    journal.jsonl    what was done, in order: stages, measured values, the end
    stages/          the weights after each finished stage, and the last snapshot of each one under way
    best/            the best model so far that the budget admits
    result/          the result, for `fxsurgery.load`
    report.html      the same as a page to read
    logs/            what loggers write

A search is a function of its settings and seed, so it is resumed by running it again: each finished stage gives the
weights it ended with, each measured value is the one of the journal, the stage under way goes on from its last
snapshot. What is recalled must come in the order it was written in; anything else is an error. Stages that are
trained at the same time (`places`) are numbered in the order of their names and written as they end.

One run at a time is at it: see `fxsurgery.runs.lock`; the processes that it starts for single stages write the
snapshots of these, and nothing else. In a distributed run the first process alone reads
and writes, and tells the others.
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
from fxsurgery.runs.layout import JOURNAL, REPORT, RESULT, STAGES, begin, require_ours
from fxsurgery.runs.lock import Lock
from fxsurgery.runs.records import require_known
from fxsurgery.runs.result_files import changed, checksums, clear_away
from fxsurgery.runs.stage_store import StageStore, read_state, write_state
from fxsurgery.training.rank_zero import from_rank_zero
from fxsurgery.training.snapshot import Checkpointer, put_back, tensors_of

T = TypeVar("T")

SNAPSHOT_SECONDS = 30.0
"""Between two snapshots of a stage, at least."""


@dataclass(eq=False)
class RunDir:
    """Recalls what a run did before, and keeps what it does. Without a path it keeps nothing."""

    path: Path | None = None
    journal: Journal | None = None
    notes: list[str] = field(default_factory=list)
    _recalled: list[Record] = field(default_factory=list)
    """What is still to be gone through again."""
    _number: int = 0
    lock: Lock | None = None
    """In the first process alone."""

    def __enter__(self) -> Self:
        if self.lock is not None:
            self.lock.working = True
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the directory."""
        if self.lock is not None:
            self.lock.release()

    @classmethod
    def open(cls, path: str | Path, asked: Mapping[str, Any], *, resume: bool) -> Self:
        """The directory of a run that asks for `asked`, plain JSON; begun, or gone on with.

        Raises:
            RunError: it cannot be written to, holds something else, or a run that is not to be resumed, or that
                asked for something else; another process is at it.
        """
        path, locks = Path(path), list[Lock]()

        def opened() -> tuple[list[str], Journal]:
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
        """How much of the journal is still to be gone through again."""
        return len(self._recalled)

    def recall(self, name: str, compute: Callable[[], T], is_valid: Callable[[Any], bool] = lambda _: True) -> T:
        """What `compute` gives, plain JSON; what it gave before where the run was here before.

        Args:
            name: what it is.
            compute: gives it.
            is_valid: whether a value of the journal is one that `compute` can give.

        Raises:
            RunError: the journal says that something else was done here.
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
            found: T = record["value"]
            return found

        return from_rank_zero(recalled)

    def stage(self, name: str, model: nn.Module, work: Callable[[Checkpointer | None], list[Any]]) -> list[Any]:
        """Let `work` train `model` in place; where that was done before, give `model` the weights of then.

        Args:
            name: the stage.
            model: what trains.
            work: trains it and gives records, plain JSON. It is handed what keeps its snapshots.

        Returns:
            The records.
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
        """The places of stages that end in any order; nothing else may be kept until the last of them has ended.

        Args:
            names: of the stages, all different. Their places in the directory go by this order.

        Raises:
            RunError: the journal says that something else was done here.
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
        """The records of these stages that are to be gone through again, by name."""
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
        """Keep the result: once, and again where what was kept is gone or changed.

        Args:
            save: writes it and its page; gives what there is to tell of it.
            tell: told of what is written again.

        Returns:
            What `save` gave.
        """
        if self.path is None:
            return None
        path = self.path

        def end() -> str | None:
            record = self._next("end", RESULT)
            while self._recalled:  # it was written again before
                record = self._next("end", RESULT)
            if record is not None:
                if (lost := changed(path, record["files"])) is None:
                    note: str | None = record["note"]
                    return note
                tell(f"{path / lost} is gone or changed: the result is written again")
                clear_away(path, RESULT, record["files"])
            note = save(path / RESULT)
            self._note({"kind": "end", "name": RESULT, "note": note, "files": checksums(path, (RESULT, REPORT))})
            return note

        return from_rank_zero(end)

    def _next(self, kind: str, name: str) -> Record | None:
        """The next record to go through again; `None` where the run was not here yet."""
        if not self._recalled:
            return None
        record = self._recalled.pop(0)
        if (record.get("kind"), record.get("name")) != (kind, name):
            raise self._other(record, kind, name)
        return record

    def _other(self, record: Record, kind: str, name: str) -> RunError:
        was = f"{record.get('kind')} {record.get('name')!r}"
        return RunError(
            f"{self.path}: the journal has {was} where this run comes to {kind} {name!r}; it is another "
            "version's or another model's. Start in another directory"
        )

    def _note(self, record: Record) -> None:
        if self.journal is not None:
            self.journal.append(record)


class Snapshots:
    """Keeps the last snapshot of one stage in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = time.monotonic()

    def last(self) -> Mapping[str, Any] | None:
        """The snapshot to go on from."""
        found: Mapping[str, Any] | None = from_rank_zero(self._read)
        return found

    def wants(self, step: int, steps: int) -> bool:
        """Whether the last one is long enough ago. The end is kept anyway."""
        if step >= steps:
            return False
        return from_rank_zero(lambda: time.monotonic() - self._last >= SNAPSHOT_SECONDS)

    def keep(self, snapshot: Mapping[str, Any]) -> None:
        """Put a snapshot in the place of the last."""
        from_rank_zero(lambda: write_state(self.path, snapshot))
        self._last = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.path):
            return None
        return read_state(self.path, "delete it, and the stage begins anew, to the same end")
