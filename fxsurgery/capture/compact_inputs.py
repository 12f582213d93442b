"""The example inputs at a smaller size, for checks whose result does not depend on it.

A graph that symbolic tracing made of a model has no size of the inputs in it, and nothing in the model's code decided
by one. Whatever such a graph does other than the model, it does at each size that shows it.
"""

from dataclasses import replace

from fxsurgery.capture import reference_runs
from fxsurgery.capture.layer_trace import Watch
from fxsurgery.capture.model_copies import Scratch
from fxsurgery.capture.size_variants import Dim, Variant, groups_of, near, resized
from fxsurgery.inputs import Inputs

SMALL = (64, 96)
"""Sizes at which runs cost less."""

LEAST = 48
"""No size is made smaller than this."""

SAVING = 0.7
"""A size is made smaller where it becomes at most this share of what it is."""

LEAST_MAP = 2
"""How wide the smallest feature map must be: what a layer does between places shows in none that is alone."""


def compact_variant(scratch: Scratch, inputs: Inputs) -> Variant | None:
    """The inputs with each large size made smaller that the model takes smaller; `None` where it takes none.

    The model must give finite numbers there, and have no feature map of a single place.

    Args:
        scratch: copies of the model.
        inputs: the example inputs.
    """
    found: Variant | None = None
    for size, dims in groups_of(inputs).items():
        base = inputs if found is None else found.inputs
        changed = (*(() if found is None else found.dims), *dims)
        tried = (_telling(scratch, resized(base, dims, n), changed) for n in _smaller(size))
        found = next((variant for variant in tried if variant is not None), found)
    return found


def beside(scratch: Scratch, compact: Variant) -> tuple[Variant, ...]:
    """Variants of a compact one, with a size one larger each, or one smaller where the model takes no larger one."""
    found = list[Variant | None]()
    for size, group in groups_of(compact.inputs).items():
        dims = tuple(dim for dim in group if dim in compact.dims)
        tried = (_tried(scratch, resized(compact.inputs, dims, n), compact.dims) for n in near(size) if dims)
        found.append(next((variant for variant in tried if variant is not None), None))
    return tuple(variant for variant in found if variant is not None)


def with_batch(compact: Variant | None, inputs: Inputs) -> Variant | None:
    """A compact variant of inputs whose batch dims have been found since; `None` where they are other ones."""
    if compact is None or compact.inputs.dims != inputs.dims:
        return None
    return replace(compact, inputs=replace(compact.inputs, batch_dims=inputs.batch_dims, samples=inputs.samples))


def _smaller(size: int) -> list[int]:
    sizes = (SMALL[0], size // 4, *SMALL[1:], size // 2)
    return [n for n in dict.fromkeys(sizes) if LEAST <= n <= SAVING * size]


def _telling(scratch: Scratch, inputs: Inputs, dims: tuple[Dim, ...]) -> Variant | None:
    """A run that shows as much as one at the size of the example; `None` where it does not, or fails."""
    watch = Watch(scratch.copy())
    with watch.listening():
        variant = _tried(scratch, inputs, dims)
    is_wide = watch.smallest_map is None or watch.smallest_map >= LEAST_MAP
    return variant if variant is not None and is_wide and variant.outcome.is_finite else None


def _tried(scratch: Scratch, inputs: Inputs, dims: tuple[Dim, ...]) -> Variant | None:
    try:
        return Variant(inputs, dims, reference_runs.run_eval(scratch.copy(), inputs))
    except Exception:  # noqa: BLE001 -- a model refuses a size in any way it likes
        return None
