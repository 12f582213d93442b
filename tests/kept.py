"""Models with code that a graph cannot hold, and a function and a module that are kept whole."""

import torch
from torch import Tensor, nn

from fxsurgery.capture import capture
from fxsurgery.result import BeforeAfter, Result


def scaled(x: Tensor, scale: float, label: str) -> Tensor:
    """Kept whole: a graph has no branch on a value."""
    return x * scale if float(x.detach().sum()) > -1e9 and label else x


class Whole(nn.Module):
    """Kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor, label: str = "") -> Tensor:
        return x * self.weight if float(x.detach().sum()) > -1e9 or label else x


class Model(nn.Module):
    """Calls both, and takes an input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.whole, self.last = nn.Linear(4, 8), Whole(), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
        x = self.whole(scaled(self.first(x).relu(), 2.0, "label"), "other")
        return {"out": self.last(x + shift)}


def result() -> Result:
    """A result whose graph is that of the model."""
    model = Model().eval()
    program = capture(model, torch.randn(2, 4), example_kwargs={"shift": torch.randn(2, 1)})
    return Result(program, program, "accuracy", {"val": BeforeAfter(0.5, 0.5)})
