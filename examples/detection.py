"""Shrink an object detector that finds discs and squares in noisy pictures that this script draws.

The detector has no anchors: each cell of a grid says which class has its center there, and how far the box reaches.

python examples/detection.py
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import fxsurgery
from fxsurgery import Budget, Dnal
from fxsurgery.training import Task, adamw

SIZE, STRIDE, CLASSES = 32, 4, 2
Found = dict[str, Tensor]


class Residual(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, rows, columns) -> the same."""
        return functional.relu(x + self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))))


class Detector(nn.Module):
    """A small backbone and two heads."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width // 2, 3, 2, 1), nn.BatchNorm2d(width // 2), nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.body = nn.Sequential(Residual(width), Residual(width))
        self.to_class, self.to_box = nn.Conv2d(width, CLASSES, 1), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(batch, 1, SIZE, SIZE) -> class logits (batch, CLASSES, cells, cells), boxes (batch, 4, cells, cells)."""
        x = self.body(self.stem(x))
        reach = self.to_box(x).clamp(-4, 4).exp() * STRIDE
        center = STRIDE * (torch.arange(SIZE // STRIDE, device=x.device) + 0.5)
        left, top, right, bottom = reach.unbind(1)
        columns, rows = center[None, None, :], center[None, :, None]
        return {
            "class": self.to_class(x),
            "box": torch.stack([columns - left, rows - top, columns + right, rows + bottom], 1),
        }


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), each (x0, y0, x1, y1)."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (one, other)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)


def loss(output: dict[str, Tensor], target: list[Found]) -> dict[str, Tensor]:
    """Return two terms by name. `target` has the boxes (objects, 4) and labels (objects,) of each picture."""
    picture = torch.cat([torch.full_like(found["labels"], i) for i, found in enumerate(target)])
    boxes, labels = (torch.cat([found[key] for found in target]) for key in ("boxes", "labels"))
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 // STRIDE).long().unbind(1)
    wanted = torch.zeros_like(output["class"])
    wanted[picture, labels, row, column] = 1
    each = functional.binary_cross_entropy_with_logits(output["class"], wanted, reduction="none")
    missed = (output["class"].sigmoid() - wanted).detach().square()  # confident hits count little
    predicted = output["box"][picture, :, row, column]
    return {
        "class": 4 * (missed * each).sum() / len(labels),
        "box": (1 - overlap(predicted, boxes)).mean() + 0.1 * functional.smooth_l1_loss(predicted, boxes),
    }


class AveragePrecision:
    """Area under the precision-recall curve, mean over the classes. A hit is a box that overlaps by at least half."""

    higher_is_better = True

    def __init__(self) -> None:
        self.scored = [list[tuple[float, bool]]() for _ in range(CLASSES)]
        self.objects = [0] * CLASSES

    def update(self, output: dict[str, Tensor], target: list[Found]) -> None:
        """Match the most confident peaks of each picture with its objects; each object is matched once."""
        scores = output["class"].sigmoid()
        peaks = scores * (scores == functional.max_pool2d(scores, 3, 1, 1))
        for found, of_picture, boxes in zip(target, peaks, output["box"].flatten(2), strict=True):
            for label in range(CLASSES):
                left = found["boxes"][found["labels"] == label]
                self.objects[label] += len(left)
                for score, cell in zip(*of_picture[label].flatten().topk(5), strict=True):
                    overlaps = overlap(boxes[:, cell], left)
                    hit = bool((overlaps > 0.5).any())
                    self.scored[label].append((score.item(), hit))
                    if hit:
                        left = left[torch.arange(len(left), device=left.device) != overlaps.argmax()]

    def compute(self) -> float:
        """Return the mean over classes of the mean precision at which each object is found."""
        found = [torch.tensor([hit for _, hit in sorted(scored, reverse=True)]).double() for scored in self.scored]
        precise = [hits.cumsum(0) / torch.arange(1, len(hits) + 1) for hits in found]
        parts = [(p * h).sum().item() / max(n, 1) for p, h, n in zip(precise, found, self.objects, strict=True)]
        return sum(parts) / CLASSES


def draw(samples: int, seed: int) -> list[tuple[Tensor, Found]]:
    """Draw pictures (1, SIZE, SIZE) with one to three objects, each in its own quarter."""
    random = torch.Generator().manual_seed(seed)
    place, drawn = torch.arange(SIZE) + 0.5, list[tuple[Tensor, Found]]()
    for _ in range(samples):
        picture, boxes = 0.3 * torch.randn(SIZE, SIZE, generator=random), list[list[float]]()
        quarters = torch.randperm(4, generator=random)[: int(torch.randint(1, 4, (), generator=random))]
        labels = torch.randint(0, CLASSES, quarters.shape, generator=random)
        for quarter, label in zip(quarters.tolist(), labels.tolist(), strict=True):
            x, y = (16 * half + int(torch.randint(6, 11, (), generator=random)) for half in divmod(quarter, 2))
            radius = int(torch.randint(3, 7, (), generator=random))
            dx, dy = (place - x)[None].abs(), (place - y)[:, None].abs()
            picture[(dx**2 + dy**2 <= radius**2) if label == 0 else (torch.maximum(dx, dy) <= radius)] += 1
            boxes.append([x - radius, y - radius, x + radius, y + radius])
        drawn.append((picture[None], {"boxes": torch.tensor(boxes).float(), "labels": labels}))
    return drawn


def loader(samples: int, seed: int, *, shuffle: bool) -> DataLoader[Any]:
    """Return batches of pictures (batch, 1, SIZE, SIZE) and a list of their objects, whose number differs."""

    def together(batch: list[tuple[Tensor, Found]]) -> tuple[Tensor, list[Found]]:
        return torch.stack([picture for picture, _ in batch]), [found for _, found in batch]

    return DataLoader(draw(samples, seed), 32, shuffle=shuffle, collate_fn=together)  # type: ignore[arg-type]


def main(*, quick: bool = False, out: Path = Path("detection.onnx")) -> fxsurgery.Result:
    """Train, shrink to half, export."""
    steps = 60 if quick else 300
    result = fxsurgery.optimize(
        Detector(),
        train_data=Task(
            loader(256 if quick else 1024, seed=0, shuffle=True),
            loader(64 if quick else 256, seed=1, shuffle=False),
            loss=loss,
            metric=AveragePrecision(),
            metric_name="AP50",
        ),
        trained=False,  # train it first
        budget=Budget(macs=0.5),
        config=Dnal(optimizer=adamw(3e-3), fewest_steps=steps, most_steps=steps),
    )
    print(result.summary())
    print("written:", result.export_onnx(out).path)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for a few steps only")
    parser.add_argument("--out", type=Path, default=Path("detection.onnx"))
    main(**vars(parser.parse_args()))
