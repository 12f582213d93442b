"""The files of a stage in a run directory, its weights and snapshots, and the journal record that ends it."""

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
"""Largest size of a file of weights or a snapshot."""


@dataclass(eq=False)
class StageStore:
    """Stores a stage in files, or in memory if there is no run directory."""

    name: str
    note: Callable[[Record], None]
    """Appends a record to the journal."""
    stem: Path | None = None
    """Path of the files without their suffixes."""
    make_keeper: Callable[[Path], Checkpointer] | None = None
    record: Record | None = None
    """Record of the finished stage; `None` if it has not finished."""
    _held: Mapping[str, Tensor] | None = None

    def keeper(self) -> Checkpointer | None:
        """Return the checkpointer of the stage, for whatever process trains it."""
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
        """Write the weights, then the journal record.

        Args:
            records: training curve, as plain JSON.
            tensors: weights by name; `None` if the stage failed.
            failure: reason of the failure.
            stopped: whether the time limit was the reason.
            lost: number of processes that died in the stage.

        Raises:
            RunError: a file cannot be written, e.g. the disk is full.
        """
        told = {"failure": failure, "stopped": stopped, **({"lost": lost} if lost else {})}
        record = {"kind": "stage", "name": self.name, "records": list(records), **told}
        if self.stem is None:
            self.record, self._held = record, tensors
        else:
            self.record = from_rank_zero(lambda: self._keep(record, tensors))

    def weights(self) -> Mapping[str, Tensor]:
        """Return the final parameters and buffers of the stage, by name, on the CPU.

        Raises:
            TrainingError: the stage failed, or has not finished.
            RunError: the weights were discarded, or their file is damaged.
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
        """Discard the weights for good; the record of the stage stays.

        A resumed run requests all weights again that it requested before, so discard only weights that were never
        requested.
        """
        self._held = None
        if self.stem is not None:
            path = self.stem.with_suffix(".weights")
            from_rank_zero(lambda: _remove(path))

    def clean(self) -> None:
        """Remove the last snapshot, and temporary files of a killed process."""
        if self.stem is None:
            return
        partial = self.stem.with_suffix(".partial")
        for path in (partial, *partial.parent.glob(f".{partial.name}.*")):
            _remove(path)

    def _keep(self, record: Record, tensors: Mapping[str, Tensor] | None) -> Record:
        """Write the weights, then the journal record with their checksum."""
        if self.stem is not None and tensors is not None:
            record = {**record, "weights": write_state(self.stem.with_suffix(".weights"), tensors)}
        self.note(record)
        self.clean()
        return record

    def _read(self, path: Path) -> dict[str, Tensor]:
        if not path.exists():
            raise RunError(
                f"{path} is missing: the weights of stage {self.name!r} were discarded after the stage, or the file "
                "was removed. Start in another directory"
            )
        recorded = None if self.record is None else self.record.get("weights")
        again = f"remove the line of stage {self.name!r} and all below it from the journal, to run these stages again"
        return read_state(path, f"start in another directory, or {again}", recorded)


def _remove(path: Path) -> None:
    with writing(path):
        path.unlink(missing_ok=True)


def write_state(path: Path, content: Mapping[str, Any]) -> str:
    """Write plain data and tensors atomically, and return the checksum.

    Raises:
        RunError: the file cannot be written.
    """
    encoded = encode(content)
    write_whole(path, encoded)
    return checksum(encoded)


def read_state(path: Path, remedy: str, recorded: str | None = None) -> dict[str, Any]:
    """Read a file of `write_state`.

    Args:
        path: the file.
        remedy: what to do if the file is damaged, for the message.
        recorded: the expected checksum; `None` if it is unknown.

    Raises:
        RunError: the file cannot be read, is damaged, or has another checksum.
    """
    encoded = read_whole(path, MOST_BYTES)
    try:
        found = decode(encoded, str(path))
    except RunError as error:
        raise RunError(f"{error}, or {remedy}") from error
    if recorded not in {None, checksum(encoded)}:
        raise RunError(f"{path} is damaged: its checksum differs from the one in the journal; {remedy}")
    return found
