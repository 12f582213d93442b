"""A network in the manner of once-for-all, small; and what two programs differ by."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.nn.elastic import Subnet, activate
from fxsurgery.program import Program
from zoo import lively

IMAGE = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class MBConv(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project; a shortcut where it can."""

    def __init__(self, entering: int, leaving: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        wide = 4 * entering
        self.expand = nn.Sequential(nn.Conv2d(entering, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
        )
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.project = nn.Sequential(nn.Conv2d(wide, leaving, 1, bias=False), nn.BatchNorm2d(leaving))
        self.short = stride == 1 and entering == leaving

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.project(y)
        return x + y if self.short else y


class OFA(nn.Module):
    """Once-for-all in small: two stages, each a strided block and identity blocks of kernel 7 and 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Hardswish())
        self.stage1 = nn.Sequential(MBConv(4, 4, 5, 2), MBConv(4, 4, 7), MBConv(4, 4, 7), MBConv(4, 4, 7))
        self.stage2 = nn.Sequential(MBConv(4, 6, 3, 2), MBConv(6, 6, 5), MBConv(6, 6, 5))
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


def ofa() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(lively(OFA(), images=IMAGE).eval(), IMAGE)


def running(supernet: Program, subnet: Subnet) -> Program:
    """`supernet` in another configuration."""
    model = supernet.trainable_copy()
    activate(model, subnet)
    return supernet.with_weights(model)


def distance(got: Program, wanted: Program) -> float:
    return max(map(relative_error, got.run_examples(), wanted.run_examples()))
