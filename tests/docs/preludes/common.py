"""Names that the reader of a page has: a small model for images of 3 x 8 x 8, and data."""

import torch
from torch import nn

_random = torch.Generator().manual_seed(0)
images = torch.randn(48, 3, 8, 8, generator=_random)
labels = images.mean((1, 2, 3)).gt(0).long()
heights = images.amax((1, 2, 3))[:, None]
train_images, train_labels, val_images, val_labels = images[:32], labels[:32], images[32:], labels[32:]
train_data, val_data = (train_images, train_labels), (val_images, val_labels)

net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
classifier = nn.Sequential(net, nn.Linear(16, 2))
regressor = nn.Sequential(net, nn.Linear(16, 1))


class MyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(32 * 16, 2)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


my_model = MyModel()
