"""A result as a folder: `result.json` with all that is plain, and a folder for each of its two programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fxsurgery.files import write_whole
from fxsurgery.program import Program
from fxsurgery.saving.programs import damage, new_folder, read_json, read_program, write_program
from fxsurgery.saving.values import decoded, encoded, plain_numbers

FORMAT = 1
RESULT = "result.json"


def save_result(folder: Path, programs: Mapping[str, Program], facts: Mapping[str, Any]) -> None:
    """Write programs and facts, plain values, as one folder that is there whole or not at all.

    Raises:
        SavingError: something cannot be written; it says what.
        RunError: the folder cannot be written to, or holds something else than a result.
    """
    written = {name: encoded(plain_numbers(value)) for name, value in facts.items()}
    with new_folder(folder, (RESULT, *programs), '"format"') as fresh:
        for name, program in programs.items():
            (fresh / name).mkdir()
            write_program(program, fresh / name)
        plain = {"format": FORMAT, "programs": list(programs), "facts": written}
        write_whole(fresh / RESULT, json.dumps(plain, indent=1).encode())


def load_result(
    folder: Path, wanted: tuple[str, ...], original: nn.Module | None
) -> tuple[dict[str, Program], dict[str, Any]]:
    """The programs of these names, and the facts.

    Raises:
        RunError: there is no result, it is damaged or of a later version, or it wants `original`.
        SavingError: it asks for what loading does not do.
    """
    plain = read_json(folder / RESULT, FORMAT)
    programs = {name: read_program(folder / name, original) for name in wanted}
    with damage(folder):
        return programs, {str(name): decoded(value) for name, value in plain["facts"].items()}
