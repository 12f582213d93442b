"""Which of the paper's two kinds a network is: with a convolution a CNN, without any an FFNN."""

from torch import nn

from fxsurgery import Program

_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = ("conv1d", "conv2d", "conv3d")
CNN, FFNN = "CNN", "FFNN"


def convolutions(program: Program) -> int:
    """How many convolutions a program calls."""
    calls = sum(1 for _ in program.calls(*_MODULES))
    return calls + sum(getattr(n.target, "__name__", "") in _FUNCTIONS for n in program.nodes)


def kind(convolutions: float) -> str:
    """`CNN` or `FFNN`, by the number of convolutions."""
    return CNN if convolutions else FFNN
