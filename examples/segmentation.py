"""Shrink a U-Net that labels pixels as background, disc or square, in noisy pictures that this script draws.

python examples/segmentation.py
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import fxsurgery
from fxsurgery import Budget, Dnal
from fxsurgery.training import Task

SIZE = 32
CLASSES = ("background", "disc", "square")


def block(before: int, after: int) -> nn.Sequential:
    """Two convolutions at one resolution."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """A U-Net of two levels with skip connections by concatenation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = block(1, width), block(width, 2 * width)
        self.bottom = block(2 * width, 2 * width)
        self.up2, self.up1 = block(4 * width, width), block(2 * width, width)
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, height, width) -> (batch, classes, height, width)."""
        fine = self.down1(x)
        coarse = self.down2(functional.max_pool2d(fine, 2))
        x = self.bottom(functional.max_pool2d(coarse, 2))
        x = self.up2(torch.cat([functional.interpolate(x, scale_factor=2), coarse], 1))
        x = self.up1(torch.cat([functional.interpolate(x, scale_factor=2), fine], 1))
        return self.head(x)


class MeanIoU:
    """Intersection over union over all pictures, mean over the classes; and the fraction of correct pixels."""

    higher_is_better = True

    def __init__(self) -> None:
        self.confusion = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch: (batch, classes, height, width) against (batch, height, width)."""
        pairs = target.flatten() * len(CLASSES) + output.argmax(1).flatten()
        self.confusion += torch.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(self.confusion.shape).cpu()

    def compute(self) -> dict[str, Tensor]:
        """Return both numbers; the `select=` of the task names the one that is selected on."""
        hits = self.confusion.diag()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return {"mIoU": (hits / union.clamp(min=1)).mean(), "pixel accuracy": hits.sum() / self.confusion.sum()}


def draw(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw pictures (samples, 1, SIZE, SIZE) and the class of each pixel (samples, SIZE, SIZE)."""
    random = torch.Generator().manual_seed(seed)
    place = torch.arange(SIZE)
    masks = torch.zeros(samples, SIZE, SIZE, dtype=torch.long)
    for mask in masks:
        for number in (1, 2):
            y, x = torch.randint(5, SIZE - 5, (2,), generator=random)
            radius = torch.randint(3, 7, (), generator=random)
            dy, dx = (place - y)[:, None].abs(), (place - x)[None].abs()
            inside = dy.square() + dx.square() <= radius**2 if number == 1 else torch.maximum(dy, dx) <= radius
            mask[inside] = number
    pictures = (masks > 0).float() + 0.5 * torch.randn(masks.shape, generator=random)
    return pictures[:, None], masks


def main(*, quick: bool = False, out: Path = Path("segmentation.onnx")) -> fxsurgery.Result:
    """Train, shrink to half, export."""
    task = Task.of(
        draw(128 if quick else 512, seed=0),
        draw(64 if quick else 256, seed=1),
        batch_size=16,
        loss=nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 1.0])),  # of every pixel
        metric=MeanIoU(),
        select="mIoU",
    )
    steps = 40 if quick else 200
    result = fxsurgery.optimize(
        UNet(8 if quick else 16),
        train_data=task,
        trained=False,  # train it first
        budget=Budget(macs=0.5),
        config=Dnal(align=4, fewest_steps=steps, most_steps=steps),
    )
    print(result.summary())
    print("written:", result.export_onnx(out).path)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for a few steps only")
    parser.add_argument("--out", type=Path, default=Path("segmentation.onnx"))
    main(**vars(parser.parse_args()))
