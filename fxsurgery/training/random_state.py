"""Random states that can be taken, kept as plain data, and put back: the process's own and those in a loader."""

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch

from fxsurgery.seeding import seeded
from fxsurgery.training.batches import Loader

Generator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
States: TypeAlias = dict[str, Any]

HOLDERS = ("sampler", "batch_sampler", "dataset")
"""Attributes through which a loader reaches what may hold a generator of its own."""


def random_states(device: torch.device) -> States:
    """The states of Python's, numpy's and torch's random numbers, on the CPU and on `device`, as plain data."""
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 -- taken to be put back
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `random_states` gave."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 -- as above
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def repeatable(loader: Loader, seed: int, device: torch.device) -> Iterator[Loader]:
    """The loader, giving the same batches whatever ran before; all random states are afterwards as they were."""
    with seeded(seed, device), generators_kept(loader) as generators:
        seed_generators(generators, seed)
        yield own_workers(loader)


def own_workers(loader: Loader) -> Loader:
    """The same loader, whose workers begin anew each time: what persisting ones draw depends on all before."""
    own = copy.copy(loader)
    # A loader refuses to have these set once it is made.
    vars(own).update(persistent_workers=False, _iterator=None)
    return own


@contextmanager
def generators_kept(loader: Loader) -> Iterator[list[Generator]]:
    """The generators that a user's loader, its samplers and its data set hold; their states are put back."""
    found = list({id(g): g for g in _generators(loader, set())}.values())
    states = [_state(g) for g in found]
    try:
        yield found
    finally:
        for generator, state in zip(found, states, strict=True):
            _set_state(generator, state)


def _generators(holder: object, seen: set[int]) -> Iterator[Generator]:
    if id(holder) in seen:
        return
    seen.add(id(holder))
    attributes = getattr(holder, "__dict__", {})
    yield from (value for value in attributes.values() if isinstance(value, Generator))
    for name in HOLDERS:
        if (inner := attributes.get(name)) is not None:
            yield from _generators(inner, seen)


def seed_generators(generators: list[Generator], seed: int) -> None:
    """Seed each of them."""
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(seed).state
        else:
            generator.seed(seed % 2**32)


def _state(generator: Generator) -> Any:  # noqa: ANN401
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Generator, state: Any) -> None:  # noqa: ANN401
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
