"""Recurrent layers, taken whole: what a hidden unit is made of.

A cell of LSTM or GRU has G = 4 or 3 gates (1 for a plain RNN). Hidden unit j is row j of each gate in the
weights `(G * hidden, input)` and `(G * hidden, hidden)`, column j of the latter, and channel j of the output.
All layers and directions have one hidden size, so they lose the same units. With a projection, the columns
of `weight_hh` and the output belong to the projection, the gates to the cell.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from fxsurgery.ops.labels import Labels, varying
from fxsurgery.ops.propagation_state import Contraction, PropagationState, Work
from fxsurgery.ops.union_find import Ids

Parameters = Callable[[str], Labels]
"""The labels of a parameter of the layer, by its name."""


def end_shapes(module: nn.RNNBase, given: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of the output, of the last hidden state and, of an LSTM, the last cell state.

    Args:
        module: the layer.
        given: the shape of its input, (..., input size), batched or not.
    """
    sides = 2 if module.bidirectional else 1
    width = getattr(module, "proj_size", 0) or module.hidden_size
    batch = () if len(given) < 3 else (given[0] if module.batch_first else given[1],)
    shapes = [(*given[:-1], sides * width), (sides * module.num_layers, *batch, width)]
    return [*shapes, (sides * module.num_layers, *batch, module.hidden_size)] if module.mode == "LSTM" else shapes


def recurrent(
    state: PropagationState, module: nn.RNNBase, source: Labels, parameter: Parameters, steps: int
) -> tuple[Ids, Ids, Ids]:
    """Tie what a hidden unit is made of; the units along the last dim of the output, and of each state.

    Args:
        state: the analysis.
        module: the layer.
        source: its input, (..., input size).
        parameter: the labels of its parameters.
        steps: samples times time steps, over samples: the work for one sample.

    Returns:
        The units along the last dim of the output, of the hidden state and of the cell state.
    """
    for plane in source.planes:
        if len(source.shape) - 1 not in varying(plane):
            state.freeze(plane)
    entering = state.vector(source, -1)
    state.contractions.append(Contraction(state.node, -1, entering))
    gates, projected = _gates(module), getattr(module, "proj_size", 0) > 0
    cell = _rows(state, parameter("weight_ih_l0"), gates)[0]
    hidden = state.vector(parameter("weight_hr_l0"), 0) if projected else cell
    sides = ("", "_reverse") if module.bidirectional else ("",)
    for layer in range(module.num_layers):
        for side in sides:
            _tie(state, parameter, f"_l{layer}{side}", (entering, hidden, cell), module)
        _count(state, (entering, hidden, cell), gates, steps * len(sides), projected=projected)
        hidden = state.atoms.find(hidden)
        entering = np.concatenate([hidden] * len(sides))
    state.mark_ungateable(cell)
    state.mark_ungateable(hidden)
    state.produced.append((state.node, hidden))
    if projected:
        state.produced.append((state.node, cell))
    return state.atoms.find(entering), hidden, state.atoms.find(cell)


def _tie(
    state: PropagationState, parameter: Parameters, suffix: str, units: tuple[Ids, Ids, Ids], module: nn.RNNBase
) -> None:
    entering, hidden, cell = units
    gates = _gates(module)
    kinds = ("ih", "hh")
    for kind, columns in zip(kinds, (entering, hidden), strict=True):
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
    """Gates of a cell: 4 of an LSTM, 3 of a GRU, 1 of a plain RNN."""
    return module.get_parameter("weight_ih_l0").shape[0] // module.hidden_size


def _rows(state: PropagationState, labels: Labels, gates: int) -> Ids:
    return state.vector(labels, 0).reshape(gates, -1)


def _count(state: PropagationState, units: tuple[Ids, Ids, Ids], gates: int, steps: int, *, projected: bool) -> None:
    entering, hidden, cell = units
    for columns in (entering, hidden):
        macs = float(steps * gates * len(cell) * len(columns))
        state.work.append(Work(state.node, "rnn", macs, (cell, columns)))
    if projected:
        state.work.append(Work(state.node, "rnn", float(steps * len(cell) * len(hidden)), (cell, hidden)))
