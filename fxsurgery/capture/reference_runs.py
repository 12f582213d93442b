"""Seeded runs of a model that leave no trace: inputs to try it on, and what it computes and learns on them."""

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
"""Calls a model on inputs that are its own."""
Meet: TypeAlias = Callable[[str, Tensor | None], None]
"""Called with the name of a gradient and its value."""


@dataclass(frozen=True)
class ReferenceOutcome:
    """What one run showed, by name: outputs, then gradients and buffers where it ran in train mode."""

    outputs: dict[str, object]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """The outputs that are tensors."""
        return [value for value in self.outputs.values() if isinstance(value, Tensor)]

    @property
    def is_finite(self) -> bool:
        """Whether every output that is a tensor holds finite numbers, and some."""
        return all(x.numel() and bool(x.isfinite().all()) for x in self.tensors)


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
    state = torch.default_generator.get_state().numpy().tobytes()
    if not _cuda_is_on():
        return (state,)
    return (state, *(generator.get_state().numpy().tobytes() for generator in torch.cuda.default_generators))


def forward(model: nn.Module, inputs: Inputs) -> object:
    """Call `model` on `inputs`."""
    return model(*inputs.args, **inputs.kwargs)


def run_eval(model: nn.Module, inputs: Inputs, *, forward: Forward = forward) -> ReferenceOutcome:
    """The outputs in eval mode. `model` is used up: hand in a copy. `forward` calls it."""
    model.train().eval()
    seed_all()
    with torch.no_grad():
        return ReferenceOutcome(_kept(named_leaves(forward(model, inputs.clone()))))


def run_twice(model: nn.Module, inputs: Inputs) -> ReferenceOutcome:
    """The outputs of two calls in eval mode, one after the other. `model` is used up: hand in a copy."""
    first, second = run_eval(model, inputs).outputs, run_eval(model, inputs).outputs
    return ReferenceOutcome(first | {f"{name} of a second call": value for name, value in second.items()})


@dataclass(frozen=True)
class TrainStep:
    """One training step: which gradients it takes, and how the model is called."""

    of_inputs: bool = True
    """Whether gradients of the inputs are taken too."""
    only: Collection[str] | None = None
    """The names of the gradients to take; all without it."""
    forward: Forward = forward
    meet: Meet | None = None
    """Called with the name and the value of each gradient as soon as there is one, which is then let go."""


def run_train(model: nn.Module, inputs: Inputs, step: TrainStep = TrainStep()) -> ReferenceOutcome:
    """Outputs, gradients and buffers of one training step. `model` is used up: hand in a copy."""
    model.train()
    seed_all()
    leaves = inputs.map(lambda x: x.detach().clone().requires_grad_(step.of_inputs and x.is_floating_point()))
    outputs = named_leaves(step.forward(model, leaves.map(lambda x: x.clone())))
    sources = {f"input {i}": x for i, x in enumerate(leaves.tensors) if x.requires_grad}
    parameters = model.named_parameters(remove_duplicate=False)
    sources |= {name: p for name, p in parameters if p.requires_grad}
    sources = {name: x for name, x in sources.items() if step.only is None or name in step.only}
    buffers = _buffers(model)
    gradients = _gradients(list(outputs.values()), sources, step.meet)
    return ReferenceOutcome(_kept(outputs), gradients, buffers)


def run_forward(
    model: nn.Module, inputs: Inputs, *, forward: Forward = forward, gradients: bool = False
) -> ReferenceOutcome:
    """The outputs in train mode, and the buffers after it. `model` is used up: hand in a copy.

    Args:
        model: the copy.
        inputs: what it runs on.
        forward: calls it.
        gradients: whether what a backward pass needs is kept meanwhile.
    """
    model.train()
    seed_all()
    with torch.set_grad_enabled(gradients):
        outputs = named_leaves(forward(model, inputs.clone()))
    return ReferenceOutcome(_kept(outputs), buffers=_buffers(model))


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in model.named_buffers(remove_duplicate=False)}


def _kept(outputs: Mapping[str, object]) -> dict[str, object]:
    return {name: _cut_off(value) for name, value in outputs.items()}


def _cut_off(value: object) -> object:
    """A tensor on memory of its own, without its history; whether it had one can still be told."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def named_leaves(output: object) -> dict[str, object]:
    """The tensors of a nested output, and its other leaves, by their order in it."""
    plain = plain_structure(output, CaptureError)
    return {f"output[{i}]": leaf for i, leaf in enumerate(pytree.tree_leaves(plain))}


def _cuda_is_on() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _uncompiled() -> AbstractContextManager[object]:
    """What torch.compile made runs as it was written. Without its compiler loaded, it made nothing."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _gradients(outputs: list[object], sources: dict[str, Tensor], meet: Meet | None) -> dict[str, Tensor | None]:
    """The gradient of a seeded random weighting of the outputs, by source; none where `meet` has had them."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    found: dict[str, Tensor | None] = dict.fromkeys(sources)
    if tensors and sources:
        weights = [torch.randn(o.shape, generator=generator).to(o) for o in tensors]
        if meet is not None and all(source.is_leaf for source in sources.values()):
            _stream(tensors, weights, sources, meet)
            return {}
        values = torch.autograd.grad(tensors, list(sources.values()), weights, allow_unused=True)
        found = dict(zip(sources, map(_dense, values), strict=True))
    if meet is None:
        return found
    for name, value in found.items():
        meet(name, value)
    return {}


def _stream(tensors: list[Tensor], weights: list[Tensor], sources: dict[str, Tensor], meet: Meet) -> None:
    """Go backward, and let `meet` have each gradient when it is there, so that they are never kept all together."""
    names = dict[int, list[str]]()
    for name, source in sources.items():
        names.setdefault(id(source), []).append(name)
    reached = set[int]()

    def take(source: Tensor) -> None:
        reached.add(id(source))
        gradient, source.grad = source.grad, None
        for name in names[id(source)]:
            meet(name, _dense(gradient))

    different = list({id(source): source for source in sources.values()}.values())
    for source in different:
        source.register_post_accumulate_grad_hook(take)  # type: ignore[no-untyped-call]
    torch.autograd.backward(tensors, weights, inputs=different)
    for source in different:
        if id(source) not in reached:
            take(source)


def _dense(gradient: Tensor | None) -> Tensor | None:
    """A gradient to compare: that of `nn.Embedding(sparse=True)` is sparse."""
    return gradient if gradient is None or gradient.layout is torch.strided else gradient.to_dense()
