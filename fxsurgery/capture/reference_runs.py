"""Seeded runs of a model that leave no trace: inputs to try it on, and what it computes and learns on them."""

import copy
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.capture.outputs import plain_structure
from fxsurgery.comparison import absolute_error, magnitude
from fxsurgery.errors import CaptureError
from fxsurgery.inputs import Inputs
from fxsurgery.seeding import random_states_kept

SEED = 20_011
TOLERANCE = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 2e-2,
}
"""Largest difference between two runs of the same operations, relative to the largest absolute value."""

FLOOR = 1e-4
"""A gradient below this share of the largest one is compared on that scale: a bias before BatchNorm has none."""

QUIET = 1e-3
"""A parameter that nowhere exceeds this hides what it multiplies, so a trial runs without it."""


@dataclass(frozen=True)
class Outcome:
    """What one run showed, by name: outputs, then gradients and buffers where it ran in train mode."""

    outputs: dict[str, object]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def contained() -> Iterator[None]:
    """Seed every global generator inside and put all of them back after; functions under torch.compile run eagerly.

    Leaving inference mode turns gradients on as well, under a caller's no_grad too.
    """
    devices = range(torch.cuda.device_count()) if _cuda_is_on() else []
    with random_states_kept(devices), torch.inference_mode(mode=False), _uncompiled():
        seed_all()
        yield


def seed_all() -> None:
    """Seed every global generator; only to be called inside `contained`."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - the state a model may draw from
    torch.default_generator.manual_seed(SEED)
    if _cuda_is_on():
        torch.cuda.manual_seed_all(SEED)


def torch_states() -> tuple[bytes, ...]:
    """The states of PyTorch's global generators: they move on with every draw."""
    states = [torch.default_generator.get_state()]
    if _cuda_is_on():
        states += [generator.get_state() for generator in torch.cuda.default_generators]
    return tuple(state.numpy().tobytes() for state in states)


def run_eval(model: nn.Module, inputs: Inputs) -> Outcome:
    """The outputs in eval mode. `model` is used up: hand in a copy."""
    model.train().eval()
    seed_all()
    own = inputs.clone()
    with torch.no_grad():
        return Outcome(named_leaves(model(*own.args, **own.kwargs)))


def run_twice(model: nn.Module, inputs: Inputs) -> Outcome:
    """The outputs of two calls in eval mode, one after the other. `model` is used up: hand in a copy."""
    first, second = run_eval(model, inputs).outputs, run_eval(model, inputs).outputs
    return Outcome(first | {f"{name} of a second call": value for name, value in second.items()})


def run_train(model: nn.Module, inputs: Inputs, *, of_inputs: bool = True) -> Outcome:
    """Outputs, gradients and buffers of one training step, with gradients of the inputs too or without.

    `model` is used up: hand in a copy.
    """
    model.train()
    seed_all()
    leaves = inputs.map(lambda x: x.detach().clone().requires_grad_(of_inputs and x.is_floating_point()))
    own = leaves.map(lambda x: x.clone())
    outputs = named_leaves(model(*own.args, **own.kwargs))
    sources = {f"input {i}": x for i, x in enumerate(leaves.tensors) if x.requires_grad}
    parameters = model.named_parameters(remove_duplicate=False)
    sources |= {name: p for name, p in parameters if p.requires_grad}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers(remove_duplicate=False)}
    gradients = _gradients(list(outputs.values()), sources)
    return Outcome({name: _cut_off(value) for name, value in outputs.items()}, gradients, buffers)


def _cut_off(value: object) -> object:
    """A tensor without the history that would keep its model alive; whether it had one can still be told."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def named_leaves(output: object) -> dict[str, object]:
    """The tensors of a nested output, and its other leaves, by their order in it."""
    plain = plain_structure(output, CaptureError)
    return {f"output[{i}]": leaf for i, leaf in enumerate(pytree.tree_leaves(plain))}


def lively(model: nn.Module) -> dict[str, Tensor]:
    """Random values for the parameters that are all zero or nearly so, by every name: a zero head equals any other."""
    generator = torch.Generator().manual_seed(SEED)
    found = dict[int, Tensor]()
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and parameter.detach().abs().max() < QUIET:
            found[id(parameter)] = torch.randn(parameter.shape, generator=generator) * 0.02
    names = model.named_parameters(remove_duplicate=False)
    return {name: found[id(parameter)] for name, parameter in names if id(parameter) in found}


def lively_copy(model: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy with these values for the parameters of these names."""
    twin = copy.deepcopy(model)
    if isinstance(twin, fx.GraphModule):
        # Else module and graph hold each other, and the copy stays until the garbage collector comes round.
        twin.graph.owning_module = None
    for name, parameter in twin.named_parameters():
        if name in values:
            parameter.data.copy_(values[name])
    return twin


class Scratch:
    """A copy of a model with lively values, to run again and again; a new one where a run changed it."""

    def __init__(self, model: nn.Module, values: Mapping[str, Tensor]) -> None:
        self._model, self._values = model, values
        self._copy, self._state = nn.Module(), list[object]()

    def copy(self) -> nn.Module:
        """Return the copy, with the weights and buffers that it had at first."""
        if self._state != _state_of(self._copy):
            self._copy = lively_copy(self._model, self._values)
            self._state = _state_of(self._copy)
        return self._copy


def _state_of(model: nn.Module) -> list[object]:
    """What a run can change: how often each tensor was written to, and the attributes of each module."""
    found: list[object] = [t._version for t in (*model.parameters(), *model.buffers())]  # noqa: SLF001 -- counts writes
    for module in model.modules():
        found += [(name, _shown(value)) for name, value in vars(module).items() if name != "training"]
    return found


def _shown(value: object) -> object:
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    return id(value), len(value) if isinstance(value, (list, dict, set, tuple)) else 0


def noisy(inputs: Inputs) -> Inputs:
    """The inputs, with seeded noise on the floating-point ones; the values of the others are dealt anew."""
    generator = torch.Generator().manual_seed(SEED)
    return inputs.map(lambda x: _noisy(x, generator) if x.is_floating_point() else _dealt(x, inputs, generator))


def redrawn(inputs: Inputs) -> Inputs:
    """Other inputs, each with the mean and the spread that it has; the values of the integer ones are dealt anew."""
    generator = torch.Generator().manual_seed(SEED)
    return inputs.map(lambda x: _redrawn(x, generator) if x.is_floating_point() else _dealt(x, inputs, generator))


def doubled(inputs: Inputs) -> Inputs:
    """Twice the batch: the inputs and noisy ones after them, where they have a batch dimension."""
    if inputs.batch and not inputs.is_divisible:
        return inputs.resized(2 * inputs.batch)
    return inputs.joined(noisy(inputs))


def difference(got: Outcome, wanted: Outcome) -> tuple[float, str]:
    """The largest difference, in units of what is allowed, and where it is; above 1 they are not equal.

    Gradients and buffers are compared by the names they have in both: an alias is one tensor of two names.
    """
    if lone := sorted(got.outputs.keys() ^ wanted.outputs.keys()):
        return torch.inf, f"{lone[0]} (only one of them has it)"
    scales = [magnitude(g) for g in wanted.gradients.values() if g is not None]
    floor = FLOOR * max(scales, default=0.0)
    found = [(_excess(got.outputs[k], wanted.outputs[k], 0.0), k) for k in got.outputs]
    if any(excess > 1 for excess, _ in found):
        return max(found)
    for name in got.gradients.keys() & wanted.gradients.keys():
        excess = _excess(got.gradients[name], wanted.gradients[name], floor)
        found += [(excess, f"the gradient of {name}")]
    for name in got.buffers.keys() & wanted.buffers.keys():
        excess = _excess(got.buffers[name], wanted.buffers[name], 0.0)
        found += [(excess, f"the buffer {name} after a step")]
    return max(found, key=lambda item: item[0])


def _excess(got: object, wanted: object, floor: float) -> float:
    if not (isinstance(got, Tensor) and isinstance(wanted, Tensor)):
        same = type(got) is type(wanted) and repr(got) == repr(wanted)
        return 0.0 if same else torch.inf
    if (got.shape, got.dtype, got.requires_grad) != (wanted.shape, wanted.dtype, wanted.requires_grad):
        return torch.inf
    got, wanted = _real(got), _real(wanted)
    error = absolute_error(got, wanted) / max(magnitude(wanted), floor, 1e-12)
    limit = TOLERANCE.get(wanted.dtype, 0.0)
    return error / limit if limit else (torch.inf if error else 0.0)


def _cuda_is_on() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _uncompiled() -> AbstractContextManager[object]:
    """What torch.compile made runs as it was written. Without its compiler loaded, it made nothing."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    spread = float(x.double().std(correction=0)) if x.numel() else 0.0
    noise = torch.randn(x.shape, generator=generator).to(x)
    return x + noise * (0.3 * spread or 1.0)


def _redrawn(x: Tensor, generator: torch.Generator) -> Tensor:
    values = x.double()
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return (values.mean() + noise * (values.std(correction=0) or 1.0)).to(x) if x.numel() else x


def _dealt(x: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
    if inputs.holds_offsets(x):
        return x  # in another order they are none
    order = torch.randperm(x.numel(), generator=generator).to(x.device)
    return x.flatten()[order].reshape(x.shape)


def _gradients(outputs: list[object], sources: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """The gradient of a seeded random weighting of the outputs, by source."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    if not tensors or not sources:
        return dict.fromkeys(sources)
    weights = [torch.randn(o.shape, generator=generator).to(o) for o in tensors]
    found = torch.autograd.grad(tensors, list(sources.values()), weights, allow_unused=True)
    return dict(zip(sources, map(_dense, found), strict=True))


def _dense(gradient: Tensor | None) -> Tensor | None:
    """A gradient to compare: that of `nn.Embedding(sparse=True)` is sparse."""
    return gradient if gradient is None or gradient.layout is torch.strided else gradient.to_dense()
