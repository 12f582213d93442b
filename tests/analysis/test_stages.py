"""Stages: which residual blocks follow each other."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.stages import stages
from fxsurgery.capture import capture

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """Residual sums of the given kinds, with a projection where the kind is `|`."""

    def __init__(self, kinds: str) -> None:
        super().__init__()
        self.kinds = kinds
        made = {
            "a": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
            "b": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)),
            "|": lambda: nn.Conv2d(3, 3, 1),
        }
        self.blocks = nn.ModuleList(made[kind]() for kind in kinds)

    def forward(self, x: Tensor) -> Tensor:
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            x = block(x) if kind == "|" else F.relu(x + block(x))
        return x


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ("aaa", [("0.0", 3, 1)]),
        ("ababab", [("0.0", 3, 2)]),
        ("aabb", [("0.0", 2, 1), ("2.0", 2, 1)]),
        ("aab", [("0.0", 2, 1)]),
        ("aa|aaa", [("0.0", 2, 1), ("3.0", 3, 1)]),
        ("ab", []),
        ("a|b", []),
    ],
)
def test_a_stage_is_a_repeated_round_of_blocks(kinds: str, found: list[tuple[str, int, int]]):
    start = capture(Blocks(kinds).eval(), IMAGE)
    got = [(stage.name.removeprefix("blocks."), len(stage.blocks), len(stage.blocks[0])) for stage in stages(start)]
    assert got == found


def test_single_blocks_are_stages_when_none_has_to_stay():
    start = capture(Blocks("a|b").eval(), IMAGE)
    assert [len(stage.blocks) for stage in stages(start, shallowest=0)] == [1, 1]


def test_norms_after_the_sum_do_not_end_a_stage():
    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = norm(x + F.gelu(layer(x)))
            return x

    start = capture(PostNorm().eval(), torch.randn(2, 5, 4))
    assert [(s.name, len(s.blocks)) for s in stages(start)] == [("layers.0", 3)]
