"""ProbeRun runs of a model without numbers.

A run is on a twin of the model whose tensors are all on PyTorch's meta device: shapes are worked out, nothing is
computed, and the model stays as it is. A model that needs numbers on its way is run with them.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxsurgery.capture import reference_runs
from fxsurgery.capture.config_inputs import drawn
from fxsurgery.capture.layer_trace import LayerRecord, Watch
from fxsurgery.errors import CaptureError, reason_of, typed_reason
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import without_warnings

MISFITS = (
    RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, ArithmeticError,
    ImportError, StopIteration,
)  # fmt: skip
"""What a forward raises on inputs that do not fit it."""

MOST_NUMBERS = 2**25
"""Of an input that is tried with them; a video of 16 frames of 512x512 has 2**24."""


@dataclass(frozen=True)
class ProbeRun:
    """How a run went."""

    error: str | None
    layers: tuple[LayerRecord, ...]
    """Those that were called, in order; the last one is where an error came up, if one did."""
    smallest_map: int | None = None
    """Least height, width or length of a feature map before global pooling."""

    @property
    def ran(self) -> bool:
        """Whether the model took the inputs, as a batch."""
        return self.error is None


class Prober:
    """Runs copies of a model, in eval mode, on inputs to be judged."""

    def __init__(self, model: nn.Module) -> None:
        tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
        floating = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.device = torch.device("cpu") if tensor is None else tensor.device
        self.dtype = torch.get_default_dtype() if floating is None else floating.dtype
        self._model = model
        self._twin = _copied(model, weightless=True)
        self._whole: nn.Module | None = None

    def dry(self, inputs: Inputs) -> ProbeRun:
        """A run of shapes alone."""
        return _tried(self._twin, inputs.map(lambda x: x.to("meta")))

    def wet(self, inputs: Inputs) -> ProbeRun:
        """A run with numbers, on the model's device."""
        if sum(x.numel() for x in inputs.tensors) > MOST_NUMBERS:
            return ProbeRun("too large to try with numbers", ())
        if self._whole is None:
            self._whole = _copied(self._model, weightless=False)
        return _tried(self._whole, drawn(inputs).map(lambda x: x.to(self.device)))

    def run(self, inputs: Inputs) -> ProbeRun:
        """A run of shapes, or with numbers where shapes alone do not do."""
        trial = self.dry(inputs)
        return self.wet(inputs) if "meta" in (trial.error or "") else trial


def _copied(model: nn.Module, *, weightless: bool) -> nn.Module:
    """A private copy in eval mode; weightless, it has no memory for its tensors."""
    memo = dict[int, Any]()
    if weightless:
        for tensor in (*model.parameters(), *model.buffers()):
            empty = torch.empty_like(tensor, device="meta", requires_grad=False)
            held = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if held else empty
    try:
        return copy.deepcopy(model, memo).eval()
    except MISFITS as error:
        raise CaptureError(
            f"the model cannot be deep-copied: {reason_of(error)}; remove what it holds of open "
            "files, locks and tensors computed with gradients"
        ) from error


def _tried(model: nn.Module, inputs: Inputs) -> ProbeRun:
    watch, failure = Watch(model), None
    with reference_runs.contained(), torch.no_grad(), without_warnings(), watch.listening():
        try:
            model(*inputs.args, **inputs.kwargs)
        except MISFITS as error:
            failure = typed_reason(error, short=True)[:200]
    lone = next((layer for layer in watch.layers if layer.unbatched), None)
    if failure is None and lone is not None:
        failure = f"{lone} took {lone.seen} as a single sample"
    return ProbeRun(failure, tuple(watch.layers), watch.smallest_map)
