"""One rule for each kind of ATen operation: how labels pass through it, and what it ties or freezes.

An operation without a rule that is pointwise by its own tag takes the pointwise rule; any other freezes
all of its inputs and is named in the report.
"""

import torch

from fxsurgery.ops.rules import contraction, joining, lookup, movement, parametric, pointwise, reduction
from fxsurgery.ops.rules.call import Call, Rule, base_name

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **movement.RULES,
    **joining.RULES,
    **reduction.RULES,
    **parametric.RULES,
    **contraction.RULES,
    **lookup.RULES,
}


def rule_for(call: Call) -> Rule | None:
    """The rule of an operation, or `None` when there is none."""
    if (rule := RULES.get(base_name(call.op))) is not None:
        return rule
    return pointwise.pointwise if torch.Tag.pointwise in call.op.tags else None


__all__ = ["RULES", "Call", "Rule", "rule_for"]
