"""Hand-written nets, one awkward habit each, in images and in sequences; the class's docstring names the habit."""

from benchmarks.coverage import awkward_images, awkward_sequences
from benchmarks.coverage.samples import Sample


def samples() -> list[Sample]:
    """The list: images first."""
    return [*awkward_images.samples(), *awkward_sequences.samples()]
