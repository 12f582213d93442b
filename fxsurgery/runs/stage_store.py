"""The place of one stage in a run directory: its weights, its snapshots, and the line of the journal that ends it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fxsurgery.errors import RunError, TrainingError
from fxsurgery.files import write_whole, writing
from fxsurgery.runs.bounded_reading import read_whole
from fxsurgery.runs.journal import Record
from fxsurgery.training.encoding import checksum, decode, encode
from fxsurgery.training.rank_zero import from_rank_zero
from fxsurgery.training.snapshot import Checkpointer

MOST_BYTES = 2**38
"""Of a file of weights or a snapshot."""


@dataclass(eq=False)
class StageStore:
    """Where a stage is kept: in files, or in memory where there is no run directory."""

    name: str
    note: Callable[[Record], None]
    """Writes a line of the journal."""
    stem: Path | None = None
    """Its files, less what they end in."""
    make_keeper: Callable[[Path], Checkpointer] | None = None
    record: Record | None = None
    """What the stage came to; `None`: it has not ended yet."""
    _held: Mapping[str, Tensor] | None = None

    def keeper(self) -> Checkpointer | None:
        """What keeps the snapshots of the stage under way, in whatever process it runs."""
        if self.stem is None or self.make_keeper is None:
            return None
        return self.make_keeper(self.stem.with_suffix(".partial"))

    def finish(
        self,
        records: Iterable[Any],
        tensors: Mapping[str, Tensor] | None,
        *,
        failure: str | None = None,
        stopped: bool = False,
        lost: int = 0,
    ) -> None:
        """Keep what the stage came to: the weights first, then the line of the journal.

        Args:
            records: its training curve, plain JSON.
            tensors: its weights; `None` where it failed.
            failure: why it has none.
            stopped: whether the clock was why.
            lost: how many processes died over it.

        Raises:
            RunError: the system refuses, e.g. since the disk is full.
        """
        told = {"failure": failure, "stopped": stopped, **({"lost": lost} if lost else {})}
        record = {"kind": "stage", "name": self.name, "records": list(records), **told}
        if self.stem is None:
            self.record, self._held = record, tensors
        else:
            self.record = from_rank_zero(lambda: self._keep(record, tensors))

    def weights(self) -> Mapping[str, Tensor]:
        """Every parameter and buffer that the stage ended with, by name, on the CPU.

        Raises:
            TrainingError: it failed, or has not ended.
            RunError: they were forgotten, or their file is damaged.
        """
        failure = "it has not ended" if self.record is None else self.record.get("failure")
        if failure is not None:
            raise TrainingError(f"stage {self.name!r} has no weights: {failure}; use the stages that ended")
        if self.stem is None:
            if self._held is None:
                raise RunError(
                    f"the weights of stage {self.name!r} were discarded after the stage; start in another directory "
                    "to train it anew"
                )
            return self._held
        path = self.stem.with_suffix(".weights")
        return from_rank_zero(lambda: self._read(path))

    def forget(self) -> None:
        """Give up the weights, for good. What the stage came to is recalled without them.

        A run that is killed and goes on asks again for all that it asked for before: so this is for weights that
        were never asked for.
        """
        self._held = None
        if self.stem is not None:
            path = self.stem.with_suffix(".weights")
            from_rank_zero(lambda: _remove(path))

    def clean(self) -> None:
        """Remove the last snapshot, and what a process that was killed was about to put in its place."""
        if self.stem is None:
            return
        partial = self.stem.with_suffix(".partial")
        for path in (partial, *partial.parent.glob(f".{partial.name}.*")):
            _remove(path)

    def _keep(self, record: Record, tensors: Mapping[str, Tensor] | None) -> Record:
        """Write the weights, then the line of the journal, which says by their checksum which they are."""
        if self.stem is not None and tensors is not None:
            record = {**record, "weights": write_state(self.stem.with_suffix(".weights"), tensors)}
        self.note(record)
        self.clean()
        return record

    def _read(self, path: Path) -> dict[str, Tensor]:
        if not path.exists():
            raise RunError(
                f"{path} is not there: the weights of stage {self.name!r} were discarded after the stage, or "
                "somebody removed them. Start in another directory"
            )
        recorded = None if self.record is None else self.record.get("weights")
        again = f"remove the line of stage {self.name!r} and all below it from the journal: they are then done again"
        return read_state(path, f"start in another directory, or {again}", recorded)


def _remove(path: Path) -> None:
    with writing(path):
        path.unlink(missing_ok=True)


def write_state(path: Path, content: Mapping[str, Any]) -> str:
    """Write plain data, tensors among them, whole or not at all; its checksum.

    Raises:
        RunError: the system refuses.
    """
    encoded = encode(content)
    write_whole(path, encoded)
    return checksum(encoded)


def read_state(path: Path, remedy: str, recorded: str | None = None) -> dict[str, Any]:
    """What `write_state` wrote.

    Args:
        path: the file.
        remedy: what to do where it is damaged.
        recorded: the checksum that it must have, where that is known.

    Raises:
        RunError: it cannot be read, is damaged, or is another than the one recorded.
    """
    encoded = read_whole(path, MOST_BYTES)
    try:
        found = decode(encoded, str(path))
    except RunError as error:
        raise RunError(f"{error}, or {remedy}") from error
    if recorded not in {None, checksum(encoded)}:
        raise RunError(f"{path} is damaged: it is another file than the one in the journal; {remedy}")
    return found
