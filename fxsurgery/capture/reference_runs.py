"""Seeded reference runs of a model without side effects: outputs, gradients and buffers."""

import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxsurgery.capture.outputs import plain_structure
from fxsurgery.errors import CaptureError
from fxsurgery.inputs import Inputs
from fxsurgery.seeding import random_states_kept

SEED = 20_011
Forward: TypeAlias = Callable[[nn.Module, Inputs], object]
"""Calls a model on inputs that it may modify."""
OnGradient: TypeAlias = Callable[[str, Tensor | None], None]
"""Called with the name of a gradient and its value, None if the output does not depend on it."""


@dataclass(frozen=True)
class ReferenceOutcome:
    """The results of one run by name: outputs and, in train mode, gradients and buffers."""

    outputs: dict[str, object]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """The outputs that are tensors."""
        return [value for value in self.outputs.values() if isinstance(value, Tensor)]

    @property
    def is_finite(self) -> bool:
        """Return True if every tensor among the outputs is nonempty and finite."""
        return all(x.numel() and bool(x.isfinite().all()) for x in self.tensors)


@contextmanager
def isolated() -> Iterator[None]:
    """Context manager that seeds all global generators and restores them; torch.compile'd functions run eagerly inside.

    It also leaves inference mode, which enables gradients even under a caller's `no_grad`.
    """
    devices = range(torch.cuda.device_count()) if _cuda_is_on() else []
    with random_states_kept(devices), torch.inference_mode(mode=False), _uncompiled():
        seed_all()
        yield


def seed_all() -> None:
    """Seed every global generator; call it inside `isolated` only."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - the state a model may draw from
    torch.default_generator.manual_seed(SEED)
    if _cuda_is_on():
        torch.cuda.manual_seed_all(SEED)


def torch_states() -> tuple[bytes, ...]:
    """Return the states of PyTorch's global generators, which advance with every draw."""
    state = torch.default_generator.get_state().numpy().tobytes()
    if not _cuda_is_on():
        return (state,)
    return (state, *(generator.get_state().numpy().tobytes() for generator in torch.cuda.default_generators))


def forward(model: nn.Module, inputs: Inputs) -> object:
    """Call `model` on `inputs`."""
    return model(*inputs.args, **inputs.kwargs)


def run_eval(model: nn.Module, inputs: Inputs, *, forward: Forward = forward) -> ReferenceOutcome:
    """Return the outputs in eval mode. The run may change `model`: pass a copy. `forward` calls it."""
    model.train().eval()
    seed_all()
    with torch.no_grad():
        return ReferenceOutcome(_detached_outputs(named_leaves(forward(model, inputs.clone()))))


def run_twice(model: nn.Module, inputs: Inputs) -> ReferenceOutcome:
    """Return the outputs of two successive calls in eval mode. The run may change `model`: pass a copy."""
    first, second = run_eval(model, inputs).outputs, run_eval(model, inputs).outputs
    return ReferenceOutcome(first | {f"{name} of a second call": value for name, value in second.items()})


@dataclass(frozen=True)
class TrainStep:
    """Options of a training step: which gradients to compute, and how to call the model."""

    input_gradients: bool = True
    """Whether to compute gradients of the inputs too."""
    only: Collection[str] | None = None
    """Names of the gradients to compute; None for all."""
    forward: Forward = forward
    on_gradient: OnGradient | None = None
    """Called with each gradient as soon as it exists; it is freed afterwards. None to return all gradients."""


def run_train(model: nn.Module, inputs: Inputs, step: TrainStep = TrainStep()) -> ReferenceOutcome:
    """Return outputs, gradients and buffers of one training step. The run may change `model`: pass a copy."""
    model.train()
    seed_all()
    leaves = inputs.map(lambda x: x.detach().clone().requires_grad_(step.input_gradients and x.is_floating_point()))
    outputs = named_leaves(step.forward(model, leaves.map(lambda x: x.clone())))
    sources = {f"input {i}": x for i, x in enumerate(leaves.tensors) if x.requires_grad}
    parameters = model.named_parameters(remove_duplicate=False)
    sources |= {name: p for name, p in parameters if p.requires_grad}
    sources = {name: x for name, x in sources.items() if step.only is None or name in step.only}
    buffers = _buffers(model)
    gradients = _gradients(list(outputs.values()), sources, step.on_gradient)
    return ReferenceOutcome(_detached_outputs(outputs), gradients, buffers)


def run_forward(
    model: nn.Module, inputs: Inputs, *, forward: Forward = forward, gradients: bool = False
) -> ReferenceOutcome:
    """Return the outputs and buffers of a forward in train mode. The run may change `model`: pass a copy.

    Args:
        model: the copy.
        inputs: the inputs to run it on.
        forward: calls the model.
        gradients: whether to keep what a backward pass would need.
    """
    model.train()
    seed_all()
    with torch.set_grad_enabled(gradients):
        outputs = named_leaves(forward(model, inputs.clone()))
    return ReferenceOutcome(_detached_outputs(outputs), buffers=_buffers(model))


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in model.named_buffers(remove_duplicate=False)}


def _detached_outputs(outputs: Mapping[str, object]) -> dict[str, object]:
    return {name: _detached(value) for name, value in outputs.items()}


def _detached(value: object) -> object:
    """Return a tensor detached on its own memory, with `requires_grad` preserved; other values unchanged."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def named_leaves(output: object) -> dict[str, object]:
    """Return the leaves of a nested output, named by their position: `output[0]`, `output[1]`, ..."""
    plain = plain_structure(output, CaptureError)
    return {f"output[{i}]": leaf for i, leaf in enumerate(pytree.tree_leaves(plain))}


def _cuda_is_on() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _uncompiled() -> AbstractContextManager[object]:
    """Return a context in which torch.compile'd functions run eagerly; a null context if dynamo is not loaded."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _gradients(
    outputs: list[object], sources: dict[str, Tensor], on_gradient: OnGradient | None
) -> dict[str, Tensor | None]:
    """Return gradients of a randomly weighted sum of the outputs by source; empty if `on_gradient` took them."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    found: dict[str, Tensor | None] = dict.fromkeys(sources)
    if tensors and sources:
        weights = [torch.randn(o.shape, generator=generator).to(o) for o in tensors]
        if on_gradient is not None and all(source.is_leaf for source in sources.values()):
            _stream(tensors, weights, sources, on_gradient)
            return {}
        values = torch.autograd.grad(tensors, list(sources.values()), weights, allow_unused=True)
        found = dict(zip(sources, map(_dense, values), strict=True))
    if on_gradient is None:
        return found
    for name, value in found.items():
        on_gradient(name, value)
    return {}


def _stream(tensors: list[Tensor], weights: list[Tensor], sources: dict[str, Tensor], on_gradient: OnGradient) -> None:
    """Run backward and pass each gradient to `on_gradient` as soon as it exists, to never hold all at once."""
    names = dict[int, list[str]]()
    for name, source in sources.items():
        names.setdefault(id(source), []).append(name)
    reached = set[int]()

    def take(source: Tensor) -> None:
        reached.add(id(source))
        gradient, source.grad = source.grad, None
        for name in names[id(source)]:
            on_gradient(name, _dense(gradient))

    unique = list({id(source): source for source in sources.values()}.values())
    for source in unique:
        source.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
    torch.autograd.backward(tensors, weights, inputs=unique)
    for source in unique:
        if id(source) not in reached:
            take(source)


def _dense(gradient: Tensor | None) -> Tensor | None:
    """Return a gradient as a dense tensor; that of `nn.Embedding(sparse=True)` is sparse."""
    return gradient if gradient is None or gradient.layout is torch.strided else gradient.to_dense()
