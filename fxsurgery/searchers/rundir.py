"""A run directory: what a killed run goes on from, to the same end.

    config.json      what was asked for, and of what
    journal.jsonl    what was done, in order: stages, measured values, the end
    stages/          the weights after each finished stage, and the last snapshot of each one under way
    best/            the best model so far that the budget admits
    result/          the result, for `fxsurgery.load`
    report.html      the same as a page to read

A search is a function of its settings and seed, so it is resumed by running it again: each finished stage gives the
weights it ended with, each measured value is the one of the journal, the stage under way goes on from its last
snapshot. What is recalled must come in the order it was written in; anything else is an error. Stages that are
trained at the same time (`places`) are numbered in the order of their names and written as they end.

One process at a time is at it: see `fxsurgery.searchers.lock`; those that it starts for single stages write the
snapshots of these, and nothing else. In a distributed run the first process alone reads
and writes, and tells the others.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import nn

from fxsurgery.errors import RunError
from fxsurgery.files import writing
from fxsurgery.searchers.beginning import JOURNAL, RESULT, STAGES, begin, require_ours
from fxsurgery.searchers.journal import Journal, Record
from fxsurgery.searchers.lock import Lock
from fxsurgery.searchers.place import Place, read_plain, write_plain
from fxsurgery.training.leader import from_first
from fxsurgery.training.snapshot import Keeper, put_back, tensors_of

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
            return begin(path, asked, resume=resume), Journal(path / JOURNAL)

        try:
            notes, journal = from_first(opened)
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return cls(path, journal, notes, list(journal.records), lock=next(iter(locks), None))

    @property
    def done(self) -> int:
        """How much of the journal is still to be gone through again."""
        return len(self._recalled)

    def recall(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` gives, plain JSON; what it gave before where the run was here before.

        Raises:
            RunError: the journal says that something else was done here.
        """
        self._number += 1
        return from_first(lambda: self._recalled_or(name, compute))

    def _recalled_or(self, name: str, compute: Callable[[], T]) -> T:
        record = self._next("value", name)
        if record is not None:
            value: T = record["value"]
            return value
        value = compute()
        self._note({"kind": "value", "name": name, "value": value})
        return value

    def stage(self, name: str, model: nn.Module, work: Callable[[Keeper | None], list[Any]]) -> list[Any]:
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

    def places(self, names: Sequence[str]) -> list[Place]:
        """The places of stages that end in any order; nothing else may be kept until the last of them has ended.

        Args:
            names: of the stages, all different. Their places in the directory go by this order.

        Raises:
            RunError: the journal says that something else was done here.
        """
        recalled = from_first(lambda: self._recalled_of(names))
        return [self._place(name, recalled.get(name)) for name in names]

    def _place(self, name: str, record: Record | None) -> Place:
        self._number += 1
        if self.path is None:
            return Place(name, self._note)
        stem = self.path / STAGES / f"{self._number:03}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        place = Place(name, self._note, stem, Snapshots, record)
        if record is not None:
            from_first(place.clean)
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

    def finish(self, save: Callable[[Path], str | None]) -> str | None:
        """Keep the result, once; what `save` has to tell of it."""
        if self.path is None:
            return None
        folder = self.path / RESULT

        def end() -> str | None:
            record = self._next("end", RESULT)
            if record is None:
                record = {"kind": "end", "name": RESULT, "note": save(folder)}
                self._note(record)
            note: str | None = record.get("note")
            return note

        return from_first(end)

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
            "version's or another model's. Begin in another directory"
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
        found: Mapping[str, Any] | None = from_first(lambda: read_plain(self.path) if self.path.exists() else None)
        return found

    def wants(self, step: int, steps: int) -> bool:
        """Whether the last one is long enough ago. The end is kept anyway."""
        if step >= steps:
            return False
        return from_first(lambda: time.monotonic() - self._last >= SNAPSHOT_SECONDS)

    def keep(self, snapshot: Mapping[str, Any]) -> None:
        """Put a snapshot in the place of the last."""
        from_first(lambda: write_plain(self.path, snapshot))
        self._last = time.monotonic()
