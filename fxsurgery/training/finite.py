"""Values that are not finite, named: in the tensors of a model, and in a batch of data."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fxsurgery.inputs import tensors_in


def not_finite(model: nn.Module) -> list[str]:
    """The parameters, statistics of norms and other buffers that hold NaN or infinite values, by name.

    Infinite entries are let pass where they have a meaning: in masks, which are buffers or frozen parameters.
    """
    statistics = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, _NormBase)
        for name, _ in module.named_buffers(recurse=False)
    }
    strict: list[tuple[str, Tensor, bool]] = [(name, p, p.requires_grad) for name, p in model.named_parameters()]
    strict += [(name, b, name in statistics) for name, b in model.named_buffers()]
    return [name for name, tensor, no_infinity in strict if _is_wrong(tensor, no_infinity=no_infinity)]


def wrong_values(batch: object) -> str | None:
    """Which tensors of a batch hold values that are not finite, and how many; `None` where all are finite."""
    return "; ".join(_counted(batch)) or None


def _is_wrong(tensor: Tensor, *, no_infinity: bool) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    values = _stored(tensor)
    return bool((~values.isfinite() if no_infinity else values.isnan()).any())


def _counted(batch: object) -> Iterator[str]:
    for place, tensor in tensors_in(batch):
        if _is_wrong(tensor, no_infinity=True):
            name = ".".join(map(str, place)) or "it"
            values = _stored(tensor)
            nans, wrong = int(values.isnan().sum()), int((~values.isfinite()).sum())
            yield f"entry {name} has {nans:,} NaN and {wrong - nans:,} infinite values of {values.numel():,}"


def _stored(tensor: Tensor) -> Tensor:
    """The values of a tensor, those that are stored of a sparse one."""
    if tensor.layout is torch.strided:
        return tensor.detach()
    return tensor.detach()._values() if tensor.is_sparse else tensor.detach().values()  # noqa: SLF001 -- uncoalesced
