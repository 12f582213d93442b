"""Kernel sizes; the reasons for which a kernel stays are those of `passes/test_elasticize.py`."""

import torch
from torch import nn

from fxsurgery.analysis.elastic_kernels import kernel_choices
from fxsurgery.capture import capture
from programs import program


def test_kernels_up_to_three_are_not_worth_a_word():
    assert kernel_choices(program("Plain")) == ((), {})
    start = capture(nn.Sequential(nn.Conv2d(3, 2, (7, 5), padding=(3, 2))).eval(), torch.randn(2, 3, 8, 8))
    [choice] = kernel_choices(start)[0]
    assert choice.sizes == ((7, 5), (5, 3), (3, 3))
