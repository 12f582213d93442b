"""Channel groups that the structure lets shrink, but after whose shrinking the program does not run.

The structure is told by tensors; what else a model computes of its sizes (an assertion, a count that it keeps in a
constant, a tensor that it writes into) shows only when the smaller program runs. One unit of every group is removed at
once and the result runs on the example inputs; where that fails, the groups are tried one by one.
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
    """The channel groups that nothing can be removed from, by name, and what the smaller program fails with."""
    groups = [group for group in structure(program).groups if len(group.units) > 1]
    if not groups or _failure(program, groups) is None:
        return MappingProxyType({})
    failures = {group.name: _failure(program, [group]) for group in groups}
    return MappingProxyType({name: told for name, told in failures.items() if told is not None})


def _failure(program: Program, groups: Collection[ChannelGroup]) -> str | None:
    """What the program raises without the first unit of each group; `None` where it runs."""
    facts, edit = structure(program), Editor(program)
    try:
        resize(edit, facts, facts.mask(np.asarray([group.units[0] for group in groups], np.int64)))
        edit.finish("trial").run_examples()
    except (SurgeryError, *RUN_ERRORS) as error:
        return first_line(error)
    return None


def unremovable_notes(program: Program) -> tuple[str, ...]:
    """What to tell a user of the groups that stay."""
    return tuple(
        f"{name} keeps its width: without one of its units the model would not run: {told}"
        for name, told in unremovable(program).items()
    )
