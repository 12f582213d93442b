"""torch-kirigami as its quick start uses it: candidates discovered, then a greedy plan to a parameter budget.

It validates its plans itself; what it leaves is only run here.
"""

import torch
from torch import nn
from torch_kirigami import DependencyGraph
from torch_kirigami.pruning import Greedy, GroupMagnitude, ParameterBudget, Pruner

from benchmarks.coverage.record import Journal
from fxsurgery.inputs import Inputs


def run(journal: Journal, model: nn.Module, inputs: Inputs, ratio: float) -> None:
    """Run all stages on `model`; the journal has the verdict, or the error that ended it."""
    row = journal.row
    before = sum(p.numel() for p in model.parameters())
    journal.arm()
    with journal.stage("build"):
        graph = DependencyGraph.build(model, args=inputs.args, kwargs=dict(inputs.kwargs))
    row.captured = True
    with journal.stage("prune"):
        pruner = Pruner(model, graph=graph)
        budget = ParameterBudget(max_params=int((1 - ratio) * before))
        model, _ = pruner.prune(pruner.discover_candidates(), budget=budget, strategy=Greedy(GroupMagnitude(p=2)))
    after = sum(p.numel() for p in model.parameters())
    row.figures |= {"params": before, "params left": after / before}
    with journal.stage("forward"), torch.no_grad():
        model(*inputs.clone().args, **inputs.clone().kwargs)
    journal.end("unchecked" if after < before else "nothing", "" if after < before else "no parameter went")
