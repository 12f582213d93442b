"""Trial runs of a model on the meta device.

Runs use a copy of the model whose tensors are all on PyTorch's meta device, so shapes are computed without data and the
model stays unchanged. A model that needs tensor values in its forward is run on real tensors instead.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxsurgery.capture import reference_runs
from fxsurgery.capture.config_inputs import drawn
from fxsurgery.capture.layer_trace import LayerRecord, LayerTracer
from fxsurgery.errors import CaptureError, reason_of, typed_reason
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import without_warnings

MISFIT_ERRORS = (
    RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, ArithmeticError,
    ImportError, StopIteration,
)  # fmt: skip
"""Exceptions that a forward raises on inputs that do not fit it."""

MAX_ELEMENTS = 2**25
"""Largest number of elements tried with real tensors; a video of 16 frames of 512x512 has 2**24."""


@dataclass(frozen=True)
class ProbeRun:
    """The result of a trial run."""

    error: str | None
    layers: tuple[LayerRecord, ...]
    """Layers in call order; if the run failed, the last one is where."""
    smallest_map: int | None = None
    """Smallest height, width or length of a feature map before global pooling; None without one."""

    @property
    def ran(self) -> bool:
        """Return True if the model accepted the inputs as a batch."""
        return self.error is None


class Prober:
    """Runs copies of a model in eval mode to find out whether it accepts given inputs."""

    def __init__(self, model: nn.Module) -> None:
        tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
        floating = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.device = torch.device("cpu") if tensor is None else tensor.device
        self.dtype = torch.get_default_dtype() if floating is None else floating.dtype
        self._model = model
        self._meta_copy = _copied(model, on_meta=True)
        self._real_copy: nn.Module | None = None

    def run_meta(self, inputs: Inputs) -> ProbeRun:
        """Run on the meta device."""
        return _probe(self._meta_copy, inputs.map(lambda x: x.to("meta")))

    def run_real(self, inputs: Inputs) -> ProbeRun:
        """Run on real tensors, on the model's device."""
        if sum(x.numel() for x in inputs.tensors) > MAX_ELEMENTS:
            return ProbeRun("too large to try with real tensors", ())
        if self._real_copy is None:
            self._real_copy = _copied(self._model, on_meta=False)
        return _probe(self._real_copy, drawn(inputs).map(lambda x: x.to(self.device)))

    def run(self, inputs: Inputs) -> ProbeRun:
        """Run on the meta device or, if the model needs tensor values, on real tensors."""
        trial = self.run_meta(inputs)
        return self.run_real(inputs) if "meta" in (trial.error or "") else trial


def _copied(model: nn.Module, *, on_meta: bool) -> nn.Module:
    """Return a private copy in eval mode; on the meta device if `on_meta`."""
    memo = dict[int, Any]()
    if on_meta:
        for tensor in (*model.parameters(), *model.buffers()):
            empty = torch.empty_like(tensor, device="meta", requires_grad=False)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    try:
        return copy.deepcopy(model, memo).eval()
    except MISFIT_ERRORS as error:
        raise CaptureError(
            f"the model cannot be deep-copied: {reason_of(error)}; remove open files, locks and tensors "
            "computed with gradients from its attributes"
        ) from error


def _probe(model: nn.Module, inputs: Inputs) -> ProbeRun:
    tracer, failure = LayerTracer(model), None
    with reference_runs.isolated(), torch.no_grad(), without_warnings(), tracer.active():
        try:
            model(*inputs.args, **inputs.kwargs)
        except MISFIT_ERRORS as error:
            failure = typed_reason(error, short=True)[:200]
    lone = next((layer for layer in tracer.layers if layer.unbatched), None)
    if failure is None and lone is not None:
        failure = f"{lone} treated its input of shape {lone.seen} as a single sample"
    return ProbeRun(failure, tuple(tracer.layers), tracer.smallest_map)
