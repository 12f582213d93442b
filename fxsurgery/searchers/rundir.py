"""A run directory: what a killed run goes on from, to the same end.

    config.json      what was asked for, and of what
    journal.jsonl    what was done, in order: stages, measured values, the end
    stages/          the weights after each finished stage, and the last snapshot of the one under way
    best/            the best model so far that the budget admits
    result/          the result, for `fxsurgery.load`
    report.html      the same as a page to read

A search is a function of its settings and seed, so it is resumed by running it again: each finished stage gives the
weights it ended with, each measured value is the one of the journal, the stage under way goes on from its last
snapshot. What is recalled must come in the order it was written in; anything else is an error.

One process at a time is at it: see `fxsurgery.searchers.lock`. In a distributed run the first process alone reads
and writes, and tells the others.
"""

import io
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import nn

from fxsurgery.errors import RunError
from fxsurgery.files import NO_TENSORS, write_whole, writing
from fxsurgery.searchers.beginning import JOURNAL, RESULT, STAGES, begin, require_ours
from fxsurgery.searchers.journal import Journal, Record
from fxsurgery.searchers.lock import Lock
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
        self._number += 1
        if self.path is None:
            return work(None)
        stem = self.path / STAGES / f"{self._number:03}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        finished = from_first(lambda: self._finished(name, stem))
        if finished is not None:
            put_back(model, finished["tensors"])
            return list(finished["records"])
        kept = Snapshots(stem.with_suffix(".partial"))
        records = work(kept)
        from_first(lambda: self._finish(name, stem, model, records))
        return records

    def _finished(self, name: str, stem: Path) -> dict[str, Any] | None:
        record = self._next("stage", name)
        if record is None:
            return None
        with writing(stem):
            stem.with_suffix(".partial").unlink(missing_ok=True)
        return {"tensors": _load(stem.with_suffix(".weights")), "records": record["records"]}

    def _finish(self, name: str, stem: Path, model: nn.Module, records: list[Any]) -> None:
        _save(stem.with_suffix(".weights"), tensors_of(model))
        self._note({"kind": "stage", "name": name, "records": records})
        with writing(stem):
            stem.with_suffix(".partial").unlink(missing_ok=True)

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
            was = f"{record.get('kind')} {record.get('name')!r}"
            raise RunError(
                f"{self.path}: the journal has {was} where this run comes to {kind} {name!r}; it is another "
                "version's or another model's. Begin in another directory"
            )
        return record

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
        found: Mapping[str, Any] | None = from_first(lambda: _load(self.path) if self.path.exists() else None)
        return found

    def wants(self, step: int, steps: int) -> bool:
        """Whether the last one is long enough ago. The end is kept anyway."""
        if step >= steps:
            return False
        return from_first(lambda: time.monotonic() - self._last >= SNAPSHOT_SECONDS)

    def keep(self, snapshot: Mapping[str, Any]) -> None:
        """Put a snapshot in the place of the last."""
        from_first(lambda: _save(self.path, snapshot))
        self._last = time.monotonic()


def _save(path: Path, content: Mapping[str, Any]) -> None:
    # Into memory first: on a full disk torch's own writer says something else than that it is full.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_whole(path, buffer.getvalue())


def _load(path: Path) -> dict[str, Any]:
    with writing(path):
        content = path.read_bytes()
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except NO_TENSORS as error:
        raise RunError(f"{path} is damaged ({error}); begin in another directory") from error
    return found
