"""Inputs for a file that comes without its model, made from what it declares."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fxsurgery.deploy.ort_session import open_session
from fxsurgery.errors import ExportError
from fxsurgery.inputs import Inputs

AXIS = "batch"
"""What the batch dim is called in files of ours."""
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def declared_inputs(path: Path, seed: int = 0) -> Inputs:
    """One sample of what the file takes: noise, and zeros for integers, which are valid as indices.

    A free dim that is called `batch` is the batch, else dim 0, and becomes 1.

    Raises:
        ExportError: the file cannot be loaded, another dim is free, or an input is of a type without arrays.
    """
    generator = torch.Generator().manual_seed(seed)
    named, dims = dict[str, Tensor](), list[int | None]()
    for declared in open_session(path).get_inputs():
        dim = _batch_dim(declared.shape)
        sizes = [1 if place == dim else size for place, size in enumerate(declared.shape)]
        if free := [size for size in sizes if not isinstance(size, int)]:
            raise ExportError(f"{path.name}: input {declared.name} has free sizes beside the batch ({free}): fix them")
        if declared.type not in _TYPES:
            raise ExportError(
                f"{path.name}: input {declared.name} is a {declared.type}, for which there is no array; pass inputs "
                "of your own with the model instead"
            )
        dtype = _TYPES[declared.type]
        noise = torch.randn(sizes, generator=generator)
        named[declared.name] = noise.to(dtype) if dtype.is_floating_point else torch.zeros(sizes, dtype=dtype)
        dims.append(dim)
    return Inputs((), named, tuple(dims) if any(dim is not None for dim in dims) else None)


def _batch_dim(shape: Sequence[object]) -> int | None:
    """The free dim that is the batch; `None` where dim 0 is not free and none is called so."""
    free = [place for place, size in enumerate(shape) if not isinstance(size, int)]
    return next((place for place in free if shape[place] == AXIS or place == 0), None)
