"""Channel gates: what stands in the graph while a search decides which units stay (DNAL, SS layer).

    y = x * sigmoid(delta * s)        per unit, s = 0 at the start, delta a buffer that grows

One `GateVector` holds s for every unit of the program and runs once a forward; a `GateApply` multiplies
its share in at the input of each channel-mixing consumer, after everything pointwise, so that gate 0 is
the removal of the channel whatever activation or offset comes before.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

Mode = Literal["off", "soft", "hard"]


class GateVector(nn.Module):
    """The gates of all units: (1 + units,); entry 0 belongs to what is never gated and is 1."""

    sharpness: Tensor
    """delta, a scalar."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(units))
        self.register_buffer("sharpness", torch.ones(()))
        self.mode: Mode = "off"

    @override
    def forward(self) -> Tensor:
        """The gates under the current mode: all 1 (off), sigmoid (soft), or 0 and 1 (hard)."""
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
    """Multiply the gates of its channels in, along one dim."""

    index: Tensor
    """(channels,) the entry of the gate vector for each channel."""

    def __init__(self, index: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.dim = dim

    @override
    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """`x` with every channel times its gate."""
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return x * gates[self.index].reshape(shape).to(x.dtype)

    @override
    def extra_repr(self) -> str:
        return f"channels={self.index.numel()}, dim={self.dim}"
