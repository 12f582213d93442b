"""Programs of the zoo, captured once: tests share them, since a program never changes."""

import functools

import numpy as np
import torch

from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.structure import Mask
from fxsurgery.capture import capture
from fxsurgery.edit import Editor
from fxsurgery.nn.gates import GateVector
from fxsurgery.program import Program
from fxsurgery.rewriting.gate_insertion import insert_gates
from zoo import REAL, ZOO, example


@functools.cache
def program(name: str) -> Program:
    """The captured model of that name, tiny or real."""
    return capture({**ZOO, **REAL}[name](), example(name))


def silenced(program: Program, keep: Mask) -> Program | None:
    """`program` with the gates of what `keep` leaves out at 0; `None` where a gate cannot stand for it."""
    plan = gate_plan(program)
    removed = np.flatnonzero(~keep)
    if not np.isin(removed, plan.units).all():
        return None
    parameter = next(program.graph_module.parameters())
    gates = GateVector(len(plan.units)).to(parameter.device, parameter.dtype)
    with torch.no_grad():
        gates.logits.copy_(torch.from_numpy(np.where(keep[plan.units], 1.0, -1.0)))
    gates.mode = "hard"
    edit = Editor(program)
    insert_gates(edit, plan, gates)
    return edit.finish("silenced")
