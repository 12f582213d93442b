"""Saving of a result as a folder: `result.json` with all plain values, and one folder per program."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxsurgery.budget import Cost
from fxsurgery.errors import RunError
from fxsurgery.files import write_whole
from fxsurgery.program import Program
from fxsurgery.saving.folders import damage_reported, new_folder
from fxsurgery.saving.original_calls import OriginalCalls
from fxsurgery.saving.programs import GRAPH, read_program, write_program
from fxsurgery.saving.schema import FORMAT, SavedResult, read_saved, require_digests, with_digests
from fxsurgery.saving.values import decoded, encoded, plain_numbers
from fxsurgery.surroundings import plain_surroundings

RESULT = "result.json"
FOLDERS = ("pareto",)
"""Folders that a result may contain besides the programs that every result has."""


@plain_surroundings()
def save_result(
    folder: Path, programs: Mapping[str, Program], facts: Mapping[str, Any], costs: Mapping[str, Cost]
) -> None:
    """Save programs and facts (plain values) as one folder, atomically.

    Args:
        folder: the target folder.
        programs: programs by name, which may be a path of two parts such as `pareto/0`.
        facts: plain values by name.
        costs: costs of programs by name, shown without running anything.

    Raises:
        SavingError: something cannot be saved; the message names it.
        RunError: the folder cannot be written, or contains something other than a result.
    """
    written = {name: encoded(plain_numbers(value)) for name, value in facts.items()}
    parts = {name.partition("/")[0] for name in (*programs, *FOLDERS)}
    with new_folder(folder, (RESULT, *sorted(parts)), '"format"') as fresh:
        for name, program in programs.items():
            (fresh / name).mkdir(parents=True)
            write_program(program, fresh / name)
        plain = {"format": FORMAT, "programs": list(programs), "facts": written, "costs": _plain(costs)}
        content = with_digests(RESULT, plain, _graphs(fresh, programs))
        write_whole(fresh / RESULT, json.dumps(content, indent=1).encode())


def _plain(costs: Mapping[str, Cost]) -> dict[str, Any]:
    return {
        name: {**vars(cost), "uncounted": list(cost.uncounted), "unknown_macs": list(cost.unknown_macs)}
        for name, cost in costs.items()
    }


def _graphs(folder: Path, programs: Iterable[str]) -> dict[str, Path]:
    """Return the files whose digests a result stores; each of these stores the digests of the files next to it."""
    return {f"{name}/{GRAPH}": folder / name / GRAPH for name in programs}


@dataclass(frozen=True)
class SavedFolder:
    """A result on disk of which only `result.json` has been read."""

    folder: Path
    saved: SavedResult
    plain: Mapping[str, Any]
    """The same as parsed JSON."""

    @property
    def facts(self) -> dict[str, Any]:
        """The saved facts by name.

        Raises:
            RunError: they are damaged.
        """
        with damage_reported(self.folder):
            return {name: decoded(value) for name, value in self.saved.facts.items()}

    @plain_surroundings()
    def programs(self, names: Sequence[str], original: nn.Module | None) -> dict[str, Program]:
        """Read the programs with these names, which must be all that the result has.

        Args:
            names: the names.
            original: the user's model, needed if a program has leaves from it.

        Raises:
            RunError: a program is missing, damaged, of a newer format, or needs `original`.
            SavingError: it needs something that loading does not support.
        """
        path = self.folder / RESULT
        if sorted(self.saved.programs) != sorted(names):
            raise RunError(
                f"{path} is damaged: it lists the programs {', '.join(self.saved.programs)[:200]}; restore an intact "
                "copy, or save it again"
            )
        original_calls = OriginalCalls()
        found = {name: read_program(self.folder / name, original, original_calls) for name in names}
        require_digests(path, self.plain, _graphs(self.folder, names))
        return found


def open_result(folder: Path) -> SavedFolder:
    """Read `result.json` of a saved result.

    Raises:
        RunError: there is no result, or it is damaged or of a newer format.
    """
    return SavedFolder(folder, *read_saved(folder / RESULT, SavedResult))
