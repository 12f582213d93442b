"""Recurrent layers as leaves: which parts of the parameters belong to a hidden unit.

An LSTM cell has G = 4 gates, a GRU cell 3, a plain RNN cell 1. Hidden unit j is row j of each gate in the weights
`(G * hidden, input)` and `(G * hidden, hidden)`, column j of the latter, and channel j of the output. All layers and
directions have the same hidden size and lose the same units. With a projection, the columns of `weight_hh` and the
output belong to the projection, the gates to the cell.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from fxsurgery.ops.labels import Labels, varying
from fxsurgery.ops.propagation_state import Contraction, PropagationState, Work
from fxsurgery.ops.union_find import Ids

Parameters = Callable[[str], Labels]
"""Returns the labels of a parameter of the layer by name."""


def end_shapes(module: nn.RNNBase, input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the output, the last hidden state and, for an LSTM, the last cell state.

    Args:
        module: the layer.
        input_shape: shape of the input, (..., input size), batched or not.
    """
    sides = 2 if module.bidirectional else 1
    width = getattr(module, "proj_size", 0) or module.hidden_size
    batch = () if len(input_shape) < 3 else (input_shape[0] if module.batch_first else input_shape[1],)
    shapes = [(*input_shape[:-1], sides * width), (sides * module.num_layers, *batch, width)]
    return [*shapes, (sides * module.num_layers, *batch, module.hidden_size)] if module.mode == "LSTM" else shapes


def recurrent(
    state: PropagationState, module: nn.RNNBase, source: Labels, parameter: Parameters, steps: int
) -> tuple[Ids, Ids, Ids]:
    """Unite the parts of each hidden unit.

    Args:
        state: the analysis.
        module: the layer.
        source: labels of the input, (..., input size).
        parameter: returns the labels of a parameter.
        steps: number of time steps per sample, for the work per sample.

    Returns:
        The units along the last dim of the output, of the hidden state and of the cell state.
    """
    for plane in source.planes:
        if len(source.shape) - 1 not in varying(plane):
            state.freeze(plane)
    inputs = state.vector(source, -1)
    state.contractions.append(Contraction(state.node, -1, inputs))
    gates, projected = _gates(module), getattr(module, "proj_size", 0) > 0
    cell = _rows(state, parameter("weight_ih_l0"), gates)[0]
    hidden = state.vector(parameter("weight_hr_l0"), 0) if projected else cell
    sides = ("", "_reverse") if module.bidirectional else ("",)
    for layer in range(module.num_layers):
        for side in sides:
            _tie(state, parameter, f"_l{layer}{side}", (inputs, hidden, cell), module)
        _count(state, (inputs, hidden, cell), gates, steps * len(sides), projected=projected)
        hidden = state.atoms.find(hidden)
        inputs = np.concatenate([hidden] * len(sides))
    state.mark_ungateable(cell)
    state.mark_ungateable(hidden)
    state.produced.append((state.node, hidden))
    if projected:
        state.produced.append((state.node, cell))
    return state.atoms.find(inputs), hidden, state.atoms.find(cell)


def _tie(
    state: PropagationState, parameter: Parameters, suffix: str, units: tuple[Ids, Ids, Ids], module: nn.RNNBase
) -> None:
    inputs, hidden, cell = units
    gates = _gates(module)
    kinds = ("ih", "hh")
    for kind, columns in zip(kinds, (inputs, hidden), strict=True):
        weight = parameter(f"weight_{kind}{suffix}")
        state.union(_rows(state, weight, gates), cell[None, :])
        state.union(state.vector(weight, 1), columns)
        if module.bias:
            state.union(_rows(state, parameter(f"bias_{kind}{suffix}"), gates), cell[None, :])
    if getattr(module, "proj_size", 0) > 0:
        weight = parameter(f"weight_hr{suffix}")
        state.union(state.vector(weight, 0), hidden)
        state.union(state.vector(weight, 1), cell)


def _gates(module: nn.RNNBase) -> int:
    """Return the number of gates: 4 for an LSTM, 3 for a GRU, 1 for a plain RNN."""
    return module.get_parameter("weight_ih_l0").shape[0] // module.hidden_size


def _rows(state: PropagationState, labels: Labels, gates: int) -> Ids:
    return state.vector(labels, 0).reshape(gates, -1)


def _count(state: PropagationState, units: tuple[Ids, Ids, Ids], gates: int, steps: int, *, projected: bool) -> None:
    inputs, hidden, cell = units
    for columns in (inputs, hidden):
        macs = float(steps * gates * len(cell) * len(columns))
        state.work.append(Work(state.node, "rnn", macs, (cell, columns)))
    if projected:
        state.work.append(Work(state.node, "rnn", float(steps * len(cell) * len(hidden)), (cell, hidden)))
