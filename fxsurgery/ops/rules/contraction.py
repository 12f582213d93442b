"""Matrix products: the summed dims of both operands have common units.

A batched product keeps the labels of its batch dims: attention loses whole heads, and all channels of a head form one
unit. With a single head, its channels are separate units; with `attention="head_dim"` they always are, and the same
channel of every head forms one unit.
"""

from collections.abc import Sequence

from fxsurgery.ops.labels import Labels, along, padded, varying
from fxsurgery.ops.propagation_state import Contraction, PropagationState
from fxsurgery.ops.rules.call import AtenCall
from fxsurgery.ops.rules.pointwise import join
from fxsurgery.ops.union_find import Ids


def product(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `x @ y` for matrices, with a bias for addmm: the inner dim is contracted."""
    bias, x, y = call.args[:3] if call.name == "addmm" else (None, *call.args[:2])
    inner, outputs = state.vector(x, 1), state.vector(y, 1)
    state.union(inner, state.vector(y, 0))
    return [_contracted(state, call, (x, inner), bias, outputs)]


def linear(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `x @ weight.T + bias` over the last dim."""
    x, weight = call.args[:2]
    bias = call.args[2] if len(call.args) > 2 else None
    inner = state.vector(x, -1)
    state.union(inner, state.vector(weight, 1))
    return [_contracted(state, call, (x, inner), bias, state.vector(weight, 0))]


def _contracted(
    state: PropagationState, call: AtenCall, inputs: tuple[Labels, Ids], bias: Labels | None, outputs: Ids
) -> Labels:
    x, inner = inputs
    last = len(call.shape) - 1
    state.contractions.append(Contraction(state.node, -1, inner))
    state.produced.append((state.node, outputs))
    state.refresh(x)
    passing = [p for p in x.planes if varying(p) != [last]]
    state.scales_with(inner, outputs, *(p.ravel() for p in passing))
    planes = [*passing, *state.labeled(call.shape, {last: outputs}).planes]
    return _with_bias(state, call, planes, bias)


def batched_product(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `x @ y` for batches of matrices (batch, rows, inner) and (batch, inner, columns)."""
    bias, x, y = call.args[:3] if call.name == "baddbmm" else (None, *call.args[:2])
    for operand in (x, y):
        state.resolve(operand, [0] if state.attention == "heads" else [1, 2])
    inner = state.vector(x, 2)
    state.union(inner, state.vector(y, 1))
    for operand in (x, y):
        state.refresh(operand)
    if inner.any():
        state.contractions.append(Contraction(state.node, -1, inner))
    heads = [[p for p in operand.planes if varying(p) == [0]] for operand in (x, y)]
    batch = (call.shape[0], 1, 1)
    planes = join(state, (batch, heads[0]), (batch, heads[1]))
    planes += [along(p.ravel(), 1, 3) for p in x.planes if varying(p) == [1]]
    planes += [along(p.ravel(), 2, 3) for p in y.planes if varying(p) == [2]]
    state.scales_with(inner, *(p.ravel() for p in planes))
    return [_with_bias(state, call, planes, bias)]


def _with_bias(state: PropagationState, call: AtenCall, planes: list[Ids], bias: Labels | None) -> Labels:
    if bias is not None:
        ndim = len(call.shape)
        shape = (1,) * (ndim - len(bias.shape)) + bias.shape
        planes = join(state, (call.shape, planes), (shape, [padded(p, ndim) for p in bias.planes]))
    return state.without_overlap(Labels(call.shape, planes))
