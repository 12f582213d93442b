"""Find channel groups that the structure analysis considers removable but that the program cannot run without.

The analysis follows tensors. Other uses of sizes (an assertion, a count stored in a constant, a tensor written into)
show only when the smaller program runs. So one unit of every group is removed at once and the result runs on the
example inputs; if that fails, the groups are tried one by one.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.structure import ChannelGroup, structure
from fxsurgery.edit import Editor
from fxsurgery.errors import SurgeryError, first_line
from fxsurgery.program import Program
from fxsurgery.proof import RUN_ERRORS
from fxsurgery.rewriting.resize import resize


@cached
def unremovable(program: Program) -> Mapping[str, str]:
    """Return the channel groups from which no unit can be removed, by name, with the error of the smaller program."""
    groups = [group for group in structure(program).groups if len(group.units) > 1]
    if not groups or _failure(program, groups) is None:
        return MappingProxyType({})
    failures = {group.name: _failure(program, [group]) for group in groups}
    return MappingProxyType({name: error for name, error in failures.items() if error is not None})


def _failure(program: Program, groups: Collection[ChannelGroup]) -> str | None:
    """Return the error of the program without the first unit of each group, or `None` if it runs."""
    facts, edit = structure(program), Editor(program)
    try:
        resize(edit, facts, facts.mask(np.asarray([group.units[0] for group in groups], np.int64)))
        edit.finish("trial").run_examples()
    except (SurgeryError, *RUN_ERRORS) as error:
        return first_line(error)
    return None


def unremovable_notes(program: Program) -> tuple[str, ...]:
    """Return a note for each group that keeps its width."""
    return tuple(
        f"{name} keeps its width, because the model fails without one of its units: {error}"
        for name, error in unremovable(program).items()
    )
