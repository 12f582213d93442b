"""What the promises are measured with: new inputs, a few steps of training, a program by value."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from torch.optim import SGD
from torch.overrides import TorchFunctionMode

from fxsurgery.comparison import TOLERANCE, relative_error
from fxsurgery.inputs import Inputs, tensors_in
from fxsurgery.program import Program
from fxsurgery.proof import RUN_ERRORS
from fxsurgery.seeding import seeded


def fresh(program: Program, seed: int = 7) -> Inputs:
    """Inputs like the examples, one sample more, drawn anew; what is not a float is left as it is."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)
        return x.mean() + 1.5 * noise * (x.std() if x.numel() > 1 else 1.0)

    return program.examples.grown().map(drawn)


def larger(program: Program) -> Inputs:
    """Fresh inputs whose last dim, if it is a spatial one, is twice as long."""
    return fresh(program).map(lambda x: torch.cat([x, x], -1) if x.dim() > 2 else x)


def outputs_if_any(program: Program, inputs: Inputs) -> list[Tensor] | None:
    """The outputs; `None` if the program does not take such inputs."""
    with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where it failed
        try:
            return program.outputs(inputs)
        except RUN_ERRORS:
            return None


def worst(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative error of any output."""
    assert len(got) == len(wanted), f"{len(got)} outputs, not {len(wanted)}"
    return max(map(relative_error, got, wanted), default=0.0)


class NoDeadUnits(TorchFunctionMode):
    """Inside, what is flat somewhere leaks: a gradient that is 0 is so for another reason than a unit that is off."""

    FLAT: ClassVar = {
        F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid,
        torch.clamp, Tensor.clamp,
    }  # fmt: skip

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.FLAT:
            return F.leaky_relu((*args, *(kwargs or {}).values())[0], 0.3)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class Training:
    """What a few steps of training did."""

    program: Program
    gradients: Mapping[str, Tensor]
    """The largest absolute gradient of each entry, by parameter."""
    outputs: list[Tensor]
    """In train mode, of each step; then, trained, in eval mode."""

    def largest(self) -> dict[str, float]:
        return {name: float(g.max()) if g.numel() else 0.0 for name, g in self.gradients.items()}

    @property
    def scale(self) -> float:
        return max(self.largest().values(), default=0.0)


def trained(program: Program, rate: float, steps: int = 3) -> Training:
    """A few plain SGD steps in train mode, without dropout; gates and elastic kernels, which train apart, stay."""
    model = program.trainable_copy().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    parameters = {n: p for n, p in model.named_parameters() if "fxsurgery_" not in n and p.requires_grad}
    seen = {n: torch.zeros_like(p) for n, p in parameters.items()}
    optimizer = SGD(parameters.values(), lr=rate) if parameters else None
    outputs = list[Tensor]()
    for step in range(steps if optimizer else 0):
        optimizer.zero_grad()
        inputs = program.examples.clone()
        with seeded(step, next(iter(parameters.values())).device):
            given = [tensor for _, tensor in tensors_in(model(*inputs.args, **inputs.kwargs))]
        _loss(given, step).backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                seen[name] = torch.maximum(seen[name], parameter.grad.abs())
        optimizer.step()
        outputs += [tensor.detach() for tensor in given]
    after = program.with_weights(model)
    return Training(after, seen, [*outputs, *after.run_examples()])


def _loss(outputs: list[Tensor], step: int) -> Tensor:
    losses = []
    for value in outputs:
        wanted = torch.linspace(-1, 1, value.numel(), dtype=value.dtype, device=value.device).roll(7 * step)
        losses.append((value - wanted.view_as(value)).square().mean())
    return torch.stack(losses).sum()


def limit(program: Program) -> float:
    return max(TOLERANCE.get(o.dtype, 0.0) for o in program.run_examples())


def has_statistics(program: Program) -> bool:
    """Whether every batch norm has running statistics; one without cannot take a single value a channel."""
    norms = program.calls(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return all(norm.track_running_stats for _, norm in norms)


def norms(program: Program) -> int:
    return sum(1 for _ in program.calls(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))


def twins(program: Program) -> set[tuple[str, int, int]]:
    """Pairs of output rows that compute the same: equal weights and, where there is one, equal biases."""
    found = set[tuple[str, int, int]]()
    for path, module in program.graph_module.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            rows = module.weight.detach().flatten(1)
            rows = rows if module.bias is None else torch.cat([rows, module.bias.detach()[:, None]], 1)
            equal = (rows[:, None] == rows[None]).all(-1).triu(1)
            found |= {(path, int(i), int(j)) for i, j in equal.nonzero()}
    return found


def photograph(program: Program) -> dict[str, object]:
    """All there is to a program, by value; tensors as bytes."""
    model = program.graph_module
    inputs = {f"input {i}": x for i, x in enumerate(program.examples.tensors)}
    return {
        "graph": program.text(),
        "log": program.log,
        "modules": tuple((name, repr(m), m.training) for name, m in model.named_modules() if name),
        **{name: _bytes(tensor) for name, tensor in (tensors(program) | inputs).items()},
    }


def tensors(program: Program) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    model = program.graph_module
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def _bytes(tensor: Tensor) -> tuple[object, ...]:
    held = tensor.detach().cpu()
    return (tensor.shape, tensor.dtype, tensor.requires_grad, held.reshape(-1).view(torch.uint8).numpy().tobytes())


def difference(before: dict[str, object], after: dict[str, object]) -> str:
    return ", ".join(sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)))
