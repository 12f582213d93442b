"""A smaller version of the example inputs, for checks whose result does not depend on size.

A graph from symbolic tracing contains no input size, and no branch in the model's code depended on one. If such a
graph differs from the model, it differs at any size that is informative.
"""

from dataclasses import replace

from fxsurgery.capture.layer_trace import LayerTracer
from fxsurgery.capture.model_copies import ScratchCopy
from fxsurgery.capture.size_variants import Dim, Variant, accepted, adjacent_sizes, groups_of, resized
from fxsurgery.inputs import Inputs

PREFERRED_SIZES = (64, 96)
"""Preferred sizes, at which runs are cheap."""

MIN_SIZE = 48
"""Lower bound for a reduced size."""

MAX_FRACTION = 0.7
"""Upper bound for a reduced size as a fraction of the original size."""

MIN_MAP_WIDTH = 2
"""Minimum width of the smallest feature map: at width 1, spatial effects of a layer do not show."""


def compact_variant(scratch: ScratchCopy, inputs: Inputs) -> Variant | None:
    """Return the inputs with every large dim reduced as far as the model accepts it; None if it accepts none.

    At the reduced sizes, the outputs must be finite and no feature map may be of width 1.

    Args:
        scratch: copies of the model.
        inputs: the example inputs.
    """
    found: Variant | None = None
    for size, dims in groups_of(inputs).items():
        base = inputs if found is None else found.inputs
        changed = (*(() if found is None else found.dims), *dims)
        tried = (_run_if_informative(scratch, resized(base, dims, n), changed) for n in _reduced_sizes(size))
        found = next((variant for variant in tried if variant is not None), found)
    return found


def neighbors(scratch: ScratchCopy, compact: Variant) -> tuple[Variant, ...]:
    """Return variants of `compact` with one reduced size larger by one each, or smaller by one as a fallback."""
    found = list[Variant | None]()
    for size, group in groups_of(compact.inputs).items():
        dims = tuple(dim for dim in group if dim in compact.dims)
        choices = [resized(compact.inputs, dims, n) for n in adjacent_sizes(size) if dims]
        tried = (accepted(scratch, inputs, compact.dims) for inputs in choices)
        found.append(next((variant for variant in tried if variant is not None), None))
    return tuple(variant for variant in found if variant is not None)


def with_batch(compact: Variant | None, inputs: Inputs) -> Variant | None:
    """Return `compact` with the batch dims of `inputs`; None if those differ from what it was run with."""
    if compact is None or compact.inputs.dims != inputs.dims:
        return None
    return replace(compact, inputs=replace(compact.inputs, batch_dims=inputs.batch_dims, samples=inputs.samples))


def _reduced_sizes(size: int) -> list[int]:
    sizes = (PREFERRED_SIZES[0], size // 4, *PREFERRED_SIZES[1:], size // 2)
    return [n for n in dict.fromkeys(sizes) if MIN_SIZE <= n <= MAX_FRACTION * size]


def _run_if_informative(scratch: ScratchCopy, inputs: Inputs, dims: tuple[Dim, ...]) -> Variant | None:
    """Return the variant with its outcome; None if it fails or shows less than the example inputs would."""
    tracer = LayerTracer(scratch.copy())
    with tracer.active():
        variant = accepted(scratch, inputs, dims)
    is_wide = tracer.smallest_map is None or tracer.smallest_map >= MIN_MAP_WIDTH
    return variant if variant is not None and is_wide and variant.outcome.is_finite else None
