import re as _re
from pathlib import Path as _Path

import numpy as _np
import torch as _torch

from fxsurgery.deploy import export_onnx as _export_onnx

_Path("nets.py").write_text(
    """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))

    def forward(self, x):
        return self.head(self.second(self.first(x)))
""",
    encoding="utf-8",
)
_Path("data.py").write_text(
    """
import torch


def _images(count):
    x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    return x, x[:, :2].mean((2, 3)).gt(0).long() @ torch.tensor([2, 1])  # two channels tell the class


train, val = _images(48), _images(32)
""",
    encoding="utf-8",
)
for _name, _count in (("train.npz", 16), ("val.npz", 8)):
    _x = _np.random.default_rng(_count).standard_normal((_count, 3, 32, 32), dtype=_np.float32)
    _np.savez(_name, x=_x, y=_np.arange(_count) % 4)


def _weights(width):
    space = {}
    exec(_Path("nets.py").read_text(encoding="utf-8"), space)
    model = space["Net"](width)
    _torch.save(model.state_dict(), "best.pt")
    _export_onnx(model.eval(), _torch.randn(2, 3, 32, 32), "original.onnx", exporter="legacy")


_weights(16)
_text = next(block for block in _re.findall(r"```toml\n(.*?)```", PAGE, _re.DOTALL) if "model =" in block)  # noqa: F821
_Path("run.toml").write_text(_text.replace("width = 32", "width = 16"), encoding="utf-8")
