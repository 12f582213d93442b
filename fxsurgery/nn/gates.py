"""Channel gates: modules in the graph while a search decides which units to keep (DNAL, SS layer).

    y = x * sigmoid(delta * s)        per unit; s starts at 0, delta is a buffer that grows

One `GateVector` holds s for every unit of the program and runs once per forward. A `GateApply` multiplies the gates of
its channels in at the input of each channel-mixing consumer, after all pointwise operations, so that gate 0 equals the
removal of the channel whatever activation or offset comes before.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

Mode = Literal["off", "soft", "hard"]


class GateVector(nn.Module):
    """The gates of all units, of shape (1 + units,); entry 0 belongs to channels that are never gated and is 1.

    Args:
        units: number of units.
    """

    sharpness: Tensor
    """The scalar delta."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(units))
        self.register_buffer("sharpness", torch.ones(()))
        self.mode: Mode = "off"

    @override
    def forward(self) -> Tensor:
        """Return the gates in the current mode, shape (1 + units,): all 1 (off), sigmoid (soft), or 0 and 1 (hard)."""
        if self.mode == "off":
            gates = torch.ones_like(self.logits)
        elif self.mode == "hard":
            gates = (self.logits > 0).to(self.logits.dtype)
        else:
            gates = torch.sigmoid(self.sharpness * self.logits)
        return torch.cat([gates.new_ones(1), gates])

    @override
    def extra_repr(self) -> str:
        return f"units={self.logits.numel()}, mode={self.mode!r}"


class GateApply(nn.Module):
    """Multiplies an activation by the gates of its channels, along one dim.

    Args:
        index: entry of the gate vector for each channel, shape (channels,).
        dim: the channel dim.
    """

    index: Tensor
    """Entry of the gate vector for each channel, shape (channels,)."""

    def __init__(self, index: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.dim = dim

    @override
    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Return `x` with every channel multiplied by its gate.

        Args:
            x: activation with the channels along `dim`.
            gates: output of `GateVector`, shape (1 + units,).
        """
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return x * gates[self.index].reshape(shape).to(x.dtype)

    @override
    def extra_repr(self) -> str:
        return f"channels={self.index.numel()}, dim={self.dim}"
