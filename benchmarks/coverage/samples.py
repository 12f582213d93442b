"""A model to cover: its name, and how to build it with the inputs it runs on.

A name is `list/model`; the lists are the modules of `LISTS`, each with a `samples()`.
"""

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.coverage.lively import enliven
from fxsurgery.inputs import Inputs

LISTS = {
    "torchvision": "benchmarks.coverage.from_torchvision",
    "timm": "benchmarks.coverage.from_timm",
    "transformers": "benchmarks.coverage.from_transformers",
    "awkward": "benchmarks.coverage.awkward",
}
ONNX_EVERY = {"torchvision": 8, "timm": 8, "transformers": 1, "awkward": 1}
"""One of this many models of each list is exported too."""


@dataclass(frozen=True)
class Sample:
    """One row of a list."""

    name: str
    build: Callable[[], tuple[nn.Module, Inputs]]
    """The model as its library builds it, and inputs; both drawn from the global generator."""
    heavy: bool = False
    """Whether it needs the machine's memory for itself."""
    exported: bool = False
    """Whether its export is tried as well."""

    def example(self, seed: int) -> tuple[nn.Module, Inputs]:
        """A lively model in eval mode and its inputs, the same for the same seed; the global state stays."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # noqa: TID251 -- nn.Module initializers draw from the global generator only
            model, inputs = self.build()
        return enliven(model, inputs, seed), inputs


def named(name: str) -> Sample:
    """The sample of that name.

    Raises:
        KeyError: There is none.
    """
    found = {sample.name: sample for sample in listed([name.partition("/")[0]])}
    return found[name]


def listed(lists: Sequence[str], only: str = "") -> list[Sample]:
    """The samples of `lists` whose name matches the regular expression `only`, in the lists' order.

    Raises:
        KeyError: There is no such list.
    """
    pattern = re.compile(only)
    return [sample for name in lists for sample in _of(name) if pattern.search(sample.name)]


def _of(name: str) -> Iterable[Sample]:
    samples: list[Sample] = importlib.import_module(LISTS[name]).samples()
    for position, sample in enumerate(samples):
        exported = position % ONNX_EVERY[name] == 0
        yield Sample(f"{name}/{sample.name}", sample.build, sample.heavy, exported)
