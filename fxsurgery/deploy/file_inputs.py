"""Random inputs for an ONNX file without its model, from the shapes and types that the file declares."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fxsurgery.deploy.ort_session import open_session
from fxsurgery.errors import ExportError
from fxsurgery.inputs import Inputs

AXIS = "batch"
"""Name of the batch dim in files that this package exports."""
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
    """Return one sample for the inputs of a file: noise, and zeros for integers, which are valid as indices.

    The batch is the dynamic dim named `batch`, else a dynamic dim 0; its size is 1.

    Raises:
        ExportError: the file cannot be loaded, another dim is dynamic, or an input has a type without arrays.
    """
    generator = torch.Generator().manual_seed(seed)
    named, dims = dict[str, Tensor](), list[int | None]()
    for declared in open_session(path).get_inputs():
        dim = _batch_dim(declared.shape)
        sizes = [1 if place == dim else size for place, size in enumerate(declared.shape)]
        if free := [size for size in sizes if not isinstance(size, int)]:
            raise ExportError(
                f"{path.name}: input {declared.name} has dynamic dims other than the batch ({free}); export the model "
                "with fixed sizes"
            )
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
    """Return the dynamic dim that is the batch; `None` if dim 0 is fixed and no dim has that name."""
    free = [place for place, size in enumerate(shape) if not isinstance(size, int)]
    return next((place for place in free if shape[place] == AXIS or place == 0), None)
