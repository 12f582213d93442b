"""Shrink your own model: replace `MyNet` and the data by yours. It runs in less than a minute.

python examples/own_model.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxsurgery
from fxsurgery import Budget, Dnal
from fxsurgery.training import Recipe, Task, cosine, evaluate, fit, sgd


class MyNet(nn.Module):
    """A stand-in for your model."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(64 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch, 10)."""
        return self.classifier(self.features(x).flatten(1))


def main() -> None:
    """Train, shrink, export, measure."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(classes)
    train, val = (images[:1400], labels[:1400]), (images[1400:], labels[1400:])

    model = MyNet()
    task = Task.of(train, val)
    fit(model, task, Recipe(steps=200, optimizer=sgd(0.05), schedule=cosine()))
    print(f"your trained model: accuracy {evaluate(model, task).metric:.4f}")

    result = fxsurgery.optimize(
        model,
        method="dnal",
        train_data=train,
        val_data=val,
        budget=Budget(macs=0.5),
        config=Dnal(finetune_epochs=10),
    )
    print(result.summary())
    small: nn.Module = result.model  # a plain module: train it on, save its state_dict, use it
    print(f"a {type(small).__name__} with {sum(p.numel() for p in small.parameters()):,} parameters")
    print(result.export_onnx("small.onnx"))
    print(result.benchmark())


if __name__ == "__main__":
    main()
