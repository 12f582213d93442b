"""Fashion-MNIST in IDX files (Xiao et al. 2017), as the Debian package dataset-fashion-mnist installs them.

A file is gzip: two zero bytes, a type byte (8: unsigned byte), the rank, one big-endian 32-bit size a
dimension, the data.
"""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path("/usr/share/datasets/fashion-mnist")
ROOT_VARIABLE = "FXSURGERY_FASHION_MNIST"
_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 28, 28), float32, and labels (n,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Splits of a data set: train, validation to select on, test to report once."""

    train: Split
    validation: Split
    test: Split


def fashion_mnist(
    root: str | Path | None = None, *, train: int = 10_000, validation: int = 2_000, test: int = 10_000
) -> Splits:
    """The first `train` training images, the `validation` that follow them, and the first `test` test images.

    All are normalized by the mean and the deviation of the pixels in the train split. The files are in
    `root`, else in `$FXSURGERY_FASHION_MNIST`, else where the Debian package puts them.

    Raises:
        FileNotFoundError: The data set is not there; the message says how to install it.
        ValueError: More images are asked for than there are, or a file is not an IDX file of bytes.
    """
    folder = installed_folder() if root is None else Path(root)
    images, labels = _pair(folder, "train", train + validation)
    pixels = images[:train] / 255.0
    mean, deviation = pixels.mean(), pixels.std()

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        normalized = ((images / 255.0 - mean) / deviation).astype(np.float32)
        return Split(torch.from_numpy(normalized)[:, None], torch.from_numpy(labels.astype(np.int64)))

    return Splits(
        train=split(images[:train], labels[:train]),
        validation=split(images[train:], labels[train:]),
        test=split(*_pair(folder, "t10k", test)),
    )


def installed_folder() -> Path:
    """The folder that `$FXSURGERY_FASHION_MNIST` names, else that of the Debian package."""
    return Path(os.environ.get(ROOT_VARIABLE) or ROOT)


def _pair(folder: Path, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if count > len(labels):
        raise ValueError(f"{count} images asked for, but {part} has {len(labels)}")
    return images[:count], labels[:count]


def _read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, uint8."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}; install Fashion-MNIST with "
            f"'apt-get install dataset-fashion-mnist', or set {ROOT_VARIABLE} to the folder that has it"
        )
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape.tolist())
