"""A result as a folder: `result.json` with all that is plain, and a folder for each of its programs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fxsurgery.files import write_whole
from fxsurgery.program import Program
from fxsurgery.saving.programs import damage, new_folder, read_json, read_program, write_program
from fxsurgery.saving.values import decoded, encoded, plain_numbers
from fxsurgery.surroundings import plain_surroundings

FORMAT = 1
RESULT = "result.json"
FOLDERS = ("pareto",)
"""What a result may hold beside the programs that every result has."""


@plain_surroundings()
def save_result(folder: Path, programs: Mapping[str, Program], facts: Mapping[str, Any]) -> None:
    """Write programs and facts, plain values, as one folder that is there whole or not at all.

    Args:
        folder: where it goes.
        programs: by name, which may be a path of two parts: `pareto/0`.
        facts: by name.

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
        plain = {"format": FORMAT, "programs": list(programs), "facts": written}
        write_whole(fresh / RESULT, json.dumps(plain, indent=1).encode())


def load_facts(folder: Path) -> dict[str, Any]:
    """The facts alone.

    Raises:
        RunError: there is no result, or it is damaged or of a later version.
    """
    plain = read_json(folder / RESULT, FORMAT)
    with damage(folder):
        return {str(name): decoded(value) for name, value in plain["facts"].items()}


@plain_surroundings()
def load_programs(folder: Path, wanted: Iterable[str], original: nn.Module | None) -> dict[str, Program]:
    """The programs of these names.

    Raises:
        RunError: one is not there, is damaged or of a later version, or wants `original`.
        SavingError: it asks for what loading does not do.
    """
    return {name: read_program(folder / name, original) for name in wanted}
