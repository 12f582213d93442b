import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.nonnegativity import is_non_negative
from fxsurgery.capture import capture


class Ends(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.a, self.b, self.pool, self.drop = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Dropout()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.a(x), self.b(x)))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, a, b: a.relu(), True),
        (lambda m, a, b: m.drop(F.max_pool2d(torch.sigmoid(a), 2)), True),
        (lambda m, a, b: m.pool(a.relu() + b.abs()), True),
        (lambda m, a, b: a, False),
        (lambda m, a, b: a.relu() + b, False),
        (lambda m, a, b: a.relu() - b.relu(), False),
        (lambda m, a, b: torch.add(a.relu(), b.relu(), alpha=-1), False),
        (lambda m, a, b: F.leaky_relu(a), False),
        (lambda m, a, b: m.pool(a), False),
    ],
)
def test_sums_and_pools_of_values_that_are_never_negative_are_not_either(function, expected: bool):
    start = capture(Ends(function).eval(), torch.randn(2, 3, 4, 4))
    head = next(n for n in start.nodes if n.target == "head")
    assert is_non_negative(start, head.all_input_nodes[0]) is expected
