"""Redirect the readers of one node to another, without affecting the other readers of the new node."""

import copy
from typing import Any

import torch
from torch import fx

from fxsurgery.analysis.blocks import writes_into
from fxsurgery.edit import Editor
from fxsurgery.program import Program


def redirect(edit: Editor, old: fx.Node, new: fx.Node) -> None:
    """Redirect all readers of `old` to `new`, which has other readers, so in-place operations must not overwrite it."""
    program = edit.program
    for reader in old.users:
        if writes_into(program, reader) is not old:
            continue
        module: Any = edit.module(str(reader.target)) if reader.op == "call_module" else None
        if module is not None and _overwrites_its_own(program, str(reader.target)):
            outside = copy.copy(module)
            outside.inplace = False
            edit.replace_module(str(reader.target), outside)
        elif "inplace" in reader.kwargs:
            edit.set_argument(reader, "inplace", value=False)
        else:
            edit.rewire(reader, old, edit.insert_function(torch.clone, (new,), before=reader))
    edit.replace_uses(old, new)


def _overwrites_its_own(program: Program, path: str) -> bool:
    """Return True if each call of a module is the only reader of the value that it overwrites."""
    calls = [n for n in program.nodes if n.op == "call_module" and n.target == path]
    return all(len(n.all_input_nodes[0].users) == 1 for n in calls)
