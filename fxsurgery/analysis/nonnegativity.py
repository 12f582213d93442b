"""Which values are never negative, whatever the input: a ReLU after one changes nothing."""

from torch import fx, nn

from fxsurgery.analysis.blocks import sum_operands
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.analysis.shapes import target_name
from fxsurgery.program import Program

POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
POOLING = {f"{kind}_pool{rank}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for rank in (1, 2, 3)}


def is_non_negative(program: Program, node: fx.Node) -> bool:
    """Whether the value of `node` is >= 0 for every input: an activation's is, and sums and pools of such values."""
    if (known := pointwise(program, node)) is not None:
        return known.is_non_negative or (known.is_identity and is_non_negative(program, node.all_input_nodes[0]))
    if (operands := sum_operands(node)) is not None and not set(node.kwargs) - {"input", "other"}:
        return all(is_non_negative(program, operand) for operand in operands)
    pools = isinstance(program.module(node), POOLS) if node.op == "call_module" else target_name(node) in POOLING
    return pools and is_non_negative(program, node.all_input_nodes[0])
