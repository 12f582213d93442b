"""Insert gates into a graph: one `GateApply` in front of each site of a plan."""

from torch import fx

from fxsurgery.analysis.gating import GATES, GatePlan
from fxsurgery.edit import Editor
from fxsurgery.nn.gates import GateApply, GateVector


def insert_gates(edit: Editor, plan: GatePlan, gates: GateVector) -> fx.Node:
    """Insert `gates`, one `GateApply` in front of each site, and return the node of the gate vector."""
    first = next(n for n in edit.program.nodes if n.op != "placeholder")
    vector = edit.insert_call(f"{GATES}.vector", gates, (), before=first)
    for position, site in enumerate(plan.sites):
        apply = GateApply(plan.index(site.ids).to(gates.logits.device), site.dim)
        gated = edit.insert_call(f"{GATES}.apply{position}", apply, (site.source, vector), before=site.node)
        edit.rewire(site.node, site.source, gated)
    return vector
