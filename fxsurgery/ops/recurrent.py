"""Recurrent layers and cells."""

import torch
from torch import nn

from fxsurgery.ops import module_sizes
from fxsurgery.ops.macs import recurrent
from fxsurgery.ops.operator import Kind, Operator

DECLARED = (
    Operator(
        name="lstm",
        kind=Kind.RECURRENT,
        size_attributes=module_sizes.recurrent,
        modules=(nn.LSTM,),
        draws="regularizes",
    ),
    Operator(
        name="mkldnn_rnn_layer",
        kind=Kind.RECURRENT,
        macs=recurrent(1, 3),
    ),
    Operator(
        name="cudnn_rnn",
        kind=Kind.RECURRENT,
        is_named=False,
        aten=("_cudnn_rnn", "miopen_rnn"),
        macs=recurrent(1, None),
    ),
    Operator(
        name="gru",
        kind=Kind.RECURRENT,
        size_attributes=module_sizes.recurrent,
        modules=(nn.GRU,),
        draws="regularizes",
    ),
    Operator(
        name="rnn",
        kind=Kind.RECURRENT,
        size_attributes=module_sizes.recurrent,
        modules=(nn.RNN,),
        functions=(torch.rnn_tanh, torch.rnn_relu),
        draws="regularizes",
    ),
    Operator(name="lstm_cell", kind=Kind.RECURRENT, size_attributes=module_sizes.cell, modules=(nn.LSTMCell,)),
    Operator(name="gru_cell", kind=Kind.RECURRENT, size_attributes=module_sizes.cell, modules=(nn.GRUCell,)),
    Operator(
        name="rnn_cell",
        kind=Kind.RECURRENT,
        size_attributes=module_sizes.cell,
        modules=(nn.RNNCell,),
        functions=(torch.rnn_tanh_cell, torch.rnn_relu_cell),
    ),
)
