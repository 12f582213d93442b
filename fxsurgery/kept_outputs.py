"""Outputs of programs that a proof has run, kept for the next proof.

They belong to the program object, so copies, pickles and `replace` begin without any, and go with it. They hold as long
as nothing that they depend on changed: the graph's code, the modules, every tensor (by its checksum, see
`fxsurgery.tensor_state`), the example inputs, and the precision and determinism settings of PyTorch. The rest of the
surroundings is always plain (`fxsurgery.surroundings`).
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
"""Of outputs that are kept for one program and number of samples; larger ones are worked out again."""


@dataclass(frozen=True)
class _State:
    """What outputs depend on."""

    code: object
    modules: tuple[tuple["ref[nn.Module]", bool], ...]
    tensors: tuple[TensorState, ...]
    settings: tuple[object, ...]


@dataclass
class _Record:
    """What is known of a program."""

    runs: dict[int | None, tuple[_State, tuple[Tensor, ...]]] = field(default_factory=dict)
    is_apart: bool | None = None
    is_asked: bool = False


_RECORDS = WeakKeyDictionary[Program, _Record]()


def sample_outputs(program: Program, samples: int | None = None) -> tuple[Tensor, ...]:
    """Return the output tensors on the example inputs; they are kept, so they must not be written to.

    What is drawn at random is the same in every run.

    Args:
        program: in eval mode, run without gradients.
        samples: their number, as `Inputs.resized` takes it; that of the example inputs by default.
    """
    with plain_surroundings(), runs_seeded(program.examples):
        return kept_outputs(program, samples)


@contextmanager
def runs_seeded(inputs: Inputs) -> Iterator[None]:
    """Let runs in the block draw the same numbers each time; afterwards the random states are as they were before."""
    device = device_of(inputs)
    with random_states_kept([device] if device.type == "cuda" else []):
        yield


def kept_outputs(program: Program, samples: int | None = None) -> tuple[Tensor, ...]:
    """Return what `sample_outputs` does; to be called inside `runs_seeded`, in plain surroundings."""
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
    """Return the output tensors on `inputs`; to be called inside `runs_seeded`."""
    reseed(0, device_of(inputs))
    return program.outputs(inputs)


def device_of(inputs: Inputs) -> torch.device:
    """Return the device of the first tensor of some inputs; the CPU where there is none."""
    return next((x.device for x in inputs.tensors), torch.device("cpu"))


def forget_outputs(program: Program) -> bool:
    """Drop what is kept of a program; return whether there was anything."""
    return _RECORDS.pop(program, None) is not None


def is_apart(program: Program) -> bool | None:
    """Return whether the outputs for each sample are its own, whatever others are there; `None` if not known yet."""
    return _record(program).is_apart


def is_first_question(program: Program) -> bool:
    """Return whether nobody has asked before, by this function, whether a program's outputs are apart."""
    record = _record(program)
    was_asked, record.is_asked = record.is_asked, True
    return not was_asked


def note_apart(program: Program, *, value: bool | None) -> None:
    """Note whether the outputs for each sample are its own, as a proof has seen."""
    _record(program).is_apart = value


def _record(program: Program) -> _Record:
    return _RECORDS.setdefault(program, _Record())


def _state(program: Program) -> _State | None:
    """The present state of a program; `None` where it cannot be told."""
    modules = list(program.graph_module.modules())
    tensors = list[TensorState]()
    for tensor in (*_held(modules), *program.examples.tensors):
        if (state := state_of(tensor)) is None:
            return None
        tensors.append(state)
    code = type(program.graph_module).forward
    return _State(code, tuple((ref(m), m.training) for m in modules), tuple(tensors), _settings())


def _held(modules: list[nn.Module]) -> Iterator[Tensor]:
    """The tensors that modules hold: parameters, buffers and, where a module is not PyTorch's, plain attributes."""
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
"""What of the caller's settings of `torch.backends` holds inside `plain_surroundings` and may change outputs."""


def _settings() -> tuple[object, ...]:
    return (torch.are_deterministic_algorithms_enabled(), *_SETTINGS(torch.backends))
