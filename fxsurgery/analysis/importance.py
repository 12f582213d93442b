"""Which units of a channel group matter least, by what the weights tell without data.

ECToNAS removes the channels of smallest |gamma|: the scale that a batch norm gives them. Units without a norm of their
own go by the L1 norm of what the next layers weigh them with (Li et al. 2017, from the consumer's side).
"""

import numpy as np
from torch.nn.modules.batchnorm import _NormBase

from fxsurgery.analysis.elastic_widths import Scores, consumed_l1
from fxsurgery.analysis.fact import fact
from fxsurgery.analysis.structure import ChannelGroup, structure
from fxsurgery.program import Program


@fact
def norm_scales(program: Program) -> Scores:
    """For each unit, the smallest |gamma| of the batch norms over it; infinite where none is."""
    facts = structure(program)
    found = np.full(facts.size, np.inf)
    for node in program.nodes:
        module = program.module(node) if node.op == "call_module" else None
        ids = facts.tensors.get(f"{node.target}.weight", {}).get(0)
        if isinstance(module, _NormBase) and ids is not None:
            np.minimum.at(found, ids, module.get_parameter("weight").detach().abs().double().cpu().numpy())
    return found


def least_important(program: Program, group: ChannelGroup, count: int) -> tuple[int, ...]:
    """The positions, in rising order, of the `count` units of a group that matter least."""
    scales = norm_scales(program)[group.units]
    scores = scales if np.isfinite(scales).all() else consumed_l1(program)[group.units]
    return tuple(sorted(np.argsort(scores, kind="stable")[:count].tolist()))
