"""Values that are nonnegative for every input, so that a ReLU after them is the identity."""

from torch import fx

from fxsurgery.analysis.blocks import sum_operands
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.program import Program


def is_non_negative(program: Program, node: fx.Node) -> bool:
    """Return True if the value of `node` is >= 0 for every input: an activation, or a sum or pool of such values."""
    if (known := pointwise(program, node)) is not None:
        return known.is_non_negative or (known.is_identity and is_non_negative(program, node.all_input_nodes[0]))
    if (operands := sum_operands(program, node)) is not None and not set(node.kwargs) - {"input", "other"}:
        return all(is_non_negative(program, operand) for operand in operands)
    operator = program.operator(node)
    return operator is not None and operator.is_pool and is_non_negative(program, node.all_input_nodes[0])
