"""A result as a folder: `result.json` with all that is plain, and a folder for each of its programs."""

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
from fxsurgery.saving.folders import damage, new_folder
from fxsurgery.saving.programs import GRAPH, read_program, write_program
from fxsurgery.saving.schema import FORMAT, SavedResult, read_saved, require_digests, with_digests
from fxsurgery.saving.values import decoded, encoded, plain_numbers
from fxsurgery.saving.witness import Witness
from fxsurgery.surroundings import plain_surroundings

RESULT = "result.json"
FOLDERS = ("pareto",)
"""What a result may hold beside the programs that every result has."""


@plain_surroundings()
def save_result(
    folder: Path, programs: Mapping[str, Program], facts: Mapping[str, Any], costs: Mapping[str, Cost]
) -> None:
    """Write programs and facts, plain values, as one folder that is there whole or not at all.

    Args:
        folder: where it goes.
        programs: by name, which may be a path of two parts: `pareto/0`.
        facts: by name.
        costs: of programs, by name: what can be shown of them without running anything.

    Raises:
        SavingError: something cannot be written; it says what.
        RunError: the folder cannot be written to, or holds something else than a result.
    """
    written = {name: encoded(plain_numbers(value)) for name, value in facts.items()}
    parts = {name.partition("/")[0] for name in (*programs, *FOLDERS)}
    with new_folder(folder, (RESULT, *sorted(parts)), '"format"') as fresh:
        for name, program in programs.items():
            (fresh / name).mkdir(parents=True)
            write_program(program, fresh / name)
        plain = {"format": FORMAT, "programs": list(programs), "facts": written, "costs": _plain(costs)}
        whole = with_digests(RESULT, plain, _graphs(fresh, programs))
        write_whole(fresh / RESULT, json.dumps(whole, indent=1).encode())


def _plain(costs: Mapping[str, Cost]) -> dict[str, Any]:
    return {
        name: {**vars(cost), "uncounted": list(cost.uncounted), "unknown_macs": list(cost.unknown_macs)}
        for name, cost in costs.items()
    }


def _graphs(folder: Path, programs: Iterable[str]) -> dict[str, Path]:
    """The files of which a result has digests; each of these has those of the files beside it."""
    return {f"{name}/{GRAPH}": folder / name / GRAPH for name in programs}


@dataclass(frozen=True)
class SavedFolder:
    """A result on disk, of which `result.json` was read and nothing else."""

    folder: Path
    saved: SavedResult
    plain: Mapping[str, Any]
    """The same, as it stands in the file."""

    @property
    def facts(self) -> dict[str, Any]:
        """The facts by name.

        Raises:
            RunError: they are damaged.
        """
        with damage(self.folder):
            return {name: decoded(value) for name, value in self.saved.facts.items()}

    @plain_surroundings()
    def programs(self, wanted: Sequence[str], original: nn.Module | None) -> dict[str, Program]:
        """The programs of these names, which are all that the result has.

        Raises:
            RunError: one is not there, is damaged or of a later version, or wants `original`.
            SavingError: it asks for what loading does not do.
        """
        path = self.folder / RESULT
        if sorted(self.saved.programs) != sorted(wanted):
            raise RunError(
                f"{path} is damaged: it names the programs {', '.join(self.saved.programs)[:200]}; restore an intact "
                "copy, or save it again"
            )
        witness = Witness()
        found = {name: read_program(self.folder / name, original, witness) for name in wanted}
        require_digests(path, self.plain, _graphs(self.folder, wanted))
        return found


def open_result(folder: Path) -> SavedFolder:
    """Read `result.json`.

    Raises:
        RunError: there is no result, or it is damaged or of a later version.
    """
    return SavedFolder(folder, *read_saved(folder / RESULT, SavedResult))
