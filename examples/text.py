"""Shrink a transformer that classifies text: which module of the standard library is it from?

python examples/text.py
"""

import argparse
import re
from collections import Counter
from importlib import import_module
from inspect import getsource
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import fxsurgery
from fxsurgery import Budget, Dnal
from fxsurgery.training import adamw

MODULES = ("argparse", "statistics", "tarfile", "_pydecimal", "difflib", "turtle")
LENGTH, WORDS = 24, 2000
UNKNOWN = 1
"""Id of a word that is not among the `WORDS` most frequent ones; 0 is padding."""


class Block(nn.Module):
    """Multi-head attention, then a feed-forward layer, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, length, width) -> the same; `mask` (batch, 1, 1, length) is True at words."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """A small transformer that classifies the mean over the words."""

    def __init__(self, width: int = 64, heads: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(MODULES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, length), (batch, length) -> (batch, modules)."""
        x = self.words(input_ids) + self.places
        for block in self.blocks:
            x = block(x, attention_mask[:, None, None])
        kept = attention_mask[..., None].to(x.dtype)
        return self.head((self.norm(x) * kept).sum(1) / kept.sum(1))


def data(share: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return training and validation data: the inputs of `forward` and `labels`, for pieces of 8 to `LENGTH` words."""
    texts = [re.findall(r"[a-z]+", getsource(import_module(name)).lower()) for name in MODULES]
    common = Counter(word for text in texts for word in text).most_common(WORDS - 2)
    number = {word: i for i, (word, _) in enumerate(common, start=2)}
    random = torch.Generator().manual_seed(0)
    rows, labels = list[list[int]](), list[int]()
    for label, text in enumerate(texts):
        for start in range(0, int(len(text) * share), LENGTH):
            size = int(torch.randint(8, LENGTH + 1, (), generator=random))
            piece = [number.get(word, UNKNOWN) for word in text[start : start + size]]
            rows.append(piece + [0] * (LENGTH - len(piece)))
            labels.append(label)
    order = torch.randperm(len(rows), generator=random)
    ids = torch.tensor(rows)[order]
    everything = {"input_ids": ids, "attention_mask": ids > 0, "labels": torch.tensor(labels)[order]}
    held = len(rows) // 5
    return {k: v[held:] for k, v in everything.items()}, {k: v[:held] for k, v in everything.items()}


def main(*, quick: bool = False, out: Path = Path("text.onnx")) -> fxsurgery.Result:
    """Train, shrink to half, export."""
    train, val = data(share=0.3 if quick else 1.0)
    steps = 30 if quick else 200
    result = fxsurgery.optimize(
        Encoder(),
        train_data=train,
        val_data=val,
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
    parser.add_argument("--out", type=Path, default=Path("text.onnx"))
    main(**vars(parser.parse_args()))
