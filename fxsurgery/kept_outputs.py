"""Cache of the outputs of programs that a proof has run, for the next proof.

The cache belongs to the program object, so copies, pickles and `replace` start without it. An entry is valid as long as
nothing that it depends on changes: the code of the graph, the modules, every tensor (by its checksum, see
`fxsurgery.tensor_state`), the example inputs, and the precision and determinism settings of PyTorch. All other settings
are always the default ones (`fxsurgery.surroundings`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.seeding import random_states_kept, reseed
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.tensor_state import TensorState, state_of

MOST_BYTES = 2**24
"""Largest total size of cached outputs for one program and number of samples; larger ones are recomputed."""


@dataclass(frozen=True)
class _State:
    """State that outputs depend on."""

    code: object
    modules: tuple[tuple["ref[nn.Module]", bool], ...]
    tensors: tuple[TensorState, ...]
    settings: tuple[object, ...]


@dataclass
class _Record:
    """Cached outputs and facts of a program."""

    runs: dict[int | None, tuple[_State, tuple[Tensor, ...]]] = field(default_factory=dict)
    is_apart: bool | None = None
    is_asked: bool = False


_RECORDS = WeakKeyDictionary[Program, _Record]()


def sample_outputs(program: Program, samples: int | None = None) -> tuple[Tensor, ...]:
    """Return the output tensors for the example inputs; they are cached, so they must not be modified.

    Random draws are the same in every run.

    Args:
        program: in eval mode, run without gradients.
        samples: their number, as `Inputs.resized` takes it; that of the example inputs by default.
    """
    with plain_surroundings(), runs_seeded(program.examples):
        return kept_outputs(program, samples)


@contextmanager
def runs_seeded(inputs: Inputs) -> Iterator[None]:
    """Make runs in the block draw the same numbers each time; the random states are restored afterwards."""
    device = device_of(inputs)
    with random_states_kept([device] if device.type == "cuda" else []):
        yield


def kept_outputs(program: Program, samples: int | None = None) -> tuple[Tensor, ...]:
    """Return the result of `sample_outputs`; call it inside `runs_seeded`, in plain surroundings."""
    record, state = _record(program), _state(program)
    if state is not None and samples in record.runs and record.runs[samples][0] == state:
        return record.runs[samples][1]
    record.runs.pop(samples, None)
    inputs = program.examples if samples is None else program.examples.resized(samples)
    found = tuple(seeded_outputs(program, inputs))
    if state is None or sum(x.nbytes for x in found) > MOST_BYTES:
        return found
    kept = tuple(x.detach().clone() for x in found)
    record.runs[samples] = state, kept
    return kept


def seeded_outputs(program: Program, inputs: Inputs) -> list[Tensor]:
    """Return the output tensors for `inputs`; call it inside `runs_seeded`."""
    reseed(0, device_of(inputs))
    return program.outputs(inputs)


def device_of(inputs: Inputs) -> torch.device:
    """Return the device of the first tensor of some inputs; the CPU if there is none."""
    return next((x.device for x in inputs.tensors), torch.device("cpu"))


def forget_outputs(program: Program) -> bool:
    """Drop the cached outputs of a program; return whether there were any."""
    return _RECORDS.pop(program, None) is not None


def is_apart(program: Program) -> bool | None:
    """Return whether the outputs of a sample are independent of the other samples; `None` if unknown."""
    return _record(program).is_apart


def is_first_question(program: Program) -> bool:
    """Return True at the first call for a program, so that independence of samples is tested once."""
    record = _record(program)
    was_asked, record.is_asked = record.is_asked, True
    return not was_asked


def note_apart(program: Program, *, value: bool | None) -> None:
    """Record whether the outputs of a sample are independent of the other samples."""
    _record(program).is_apart = value


def _record(program: Program) -> _Record:
    return _RECORDS.setdefault(program, _Record())


def _state(program: Program) -> _State | None:
    """Return the current state of a program; `None` if it cannot be determined."""
    modules = list(program.graph_module.modules())
    tensors = list[TensorState]()
    for tensor in (*_held(modules), *program.examples.tensors):
        if (state := state_of(tensor)) is None:
            return None
        tensors.append(state)
    code = type(program.graph_module).forward
    return _State(code, tuple((ref(m), m.training) for m in modules), tuple(tensors), _settings())


def _held(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Yield the tensors of modules: parameters, buffers and, for modules that are not PyTorch's, plain attributes."""
    for module in modules:
        yield from (t for t in module._parameters.values() if t is not None)  # noqa: SLF001 -- `parameters` is slow
        yield from (t for t in module._buffers.values() if t is not None)  # noqa: SLF001
        if not type(module).__module__.startswith("torch.nn"):
            yield from (value for value in vars(module).values() if isinstance(value, Tensor))


_SETTINGS = attrgetter(
    "cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision",
    "mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision", "mkldnn.rnn.fp32_precision",
    "mkldnn.enabled", "mkldnn.deterministic", "cudnn.enabled", "cudnn.deterministic", "cudnn.benchmark",
)  # fmt: skip
"""Settings of `torch.backends` that stay in effect inside `plain_surroundings` and may change outputs."""


def _settings() -> tuple[object, ...]:
    return (torch.are_deterministic_algorithms_enabled(), *_SETTINGS(torch.backends))
