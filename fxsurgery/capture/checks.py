"""Is the trace the model? Run both, and compare what can be compared."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxsurgery.errors import CaptureError, DataError
from fxsurgery.program import Program
from fxsurgery.surgery import relative_error

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""The same operations in the same order: nearly bit-equal. Relative to the largest value."""


def check_examples(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Run the model on the example inputs.

    Raises:
        DataError: there is none, one is no tensor, or the model does not take them.
        CaptureError: no tensor comes out.
    """
    if not inputs:
        raise DataError("example inputs are needed: capture(model, x), the batch along dim 0")
    for value in inputs:
        if not isinstance(value, Tensor):
            raise DataError(f"an example input is a {type(value).__name__}, not a tensor")
    try:
        output = _run(model, inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise DataError(f"the model does not take inputs of shape {shapes}: {error}") from error
    if not _tensors(output):
        raise CaptureError(f"the model's output is not a tensor and holds none: it is {_named(output)}")
    if strays := [leaf for leaf in pytree.tree_leaves(output) if not isinstance(leaf, (Tensor, type(None)))]:
        raise CaptureError(f"the model's output is not all tensors: it holds {_named(strays[0])}; return tensors alone")


def check_nothing_lost(model: nn.Module, graph_module: nn.Module) -> None:
    """Every parameter and persistent buffer is in the graph, under the user's key.

    Raises:
        CaptureError: some are not; it names them.
    """
    if not (lost := sorted(set(model.state_dict()) - set(graph_module.state_dict()))):
        return
    shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    owners = sorted({key.rpartition(".")[0].split(".")[0] for key in lost})
    raise CaptureError(
        f"these parameters take no part in the model's eval-mode output: {shown}. If {', '.join(owners)} runs only "
        "in train mode (an auxiliary head), build the model without it (torchvision: aux_logits=False); if it is "
        "never used, remove it"
    )


def check_capture(model: nn.Module, program: Program) -> None:
    """Compare model and program in eval mode at two batch sizes, and in train mode with gradients.

    Raises:
        CaptureError: they differ; it says in what.
    """
    inputs = [_noisy(x, seed) for seed, x in enumerate(program.example_inputs)]
    model, traced = copy.deepcopy(model), program.trainable_copy()
    _enliven(model, traced, inputs)
    _compare(_run(model, inputs), _run(traced, inputs), "in eval mode, at the example batch size")
    _check_other_batch(model, traced, inputs)
    _check_training(model, traced, inputs)


def _check_other_batch(model: nn.Module, traced: nn.Module, inputs: list[Tensor]) -> None:
    larger = [torch.cat([x, x[:1]]) if x.dim() else x for x in inputs]
    try:
        wanted = _run(model, larger)
    except Exception:  # noqa: BLE001 -- the model itself takes one batch size only: nothing to compare
        return
    try:
        got = _run(traced, larger)
    except Exception as error:
        raise CaptureError(
            f"the traced model runs only at the example batch size: a shape was baked in ({error}). Compute "
            "shapes from x.shape in forward, or use -1 for the batch"
        ) from error
    _compare(wanted, got, "at another batch size: a shape or a value was baked in")


def _check_training(model: nn.Module, traced: nn.Module, inputs: list[Tensor]) -> None:
    if inputs[0].dim() and inputs[0].shape[0] == 1:
        inputs = [torch.cat([x, _noisy(x, 17)]) if x.dim() else x for x in inputs]
    outputs, gradients = [], []
    for candidate in (model, traced):
        candidate.train()
        candidate.zero_grad()
        try:
            output = _run(candidate, inputs, seed=11, grad=True)
        except Exception as error:
            whose = "traced model" if candidate is traced else "model"
            raise CaptureError(f"the {whose} does not run in train mode: {error}") from error
        outputs.append(output)
        gradients.append(_gradients(candidate, output))
    differ = (
        "in train mode. What the mode changes was baked in: use nn.Dropout in place of F.dropout(..., "
        "training=self.training), and modules in place of branches on self.training"
    )
    _compare(outputs[0], outputs[1], differ)
    if (first := _differing(*gradients)) is not None:
        raise CaptureError(
            f"the traced model's gradient of {first} differs: tracing drops no_grad and autocast regions, and "
            "looks into a torch.autograd.Function, losing its backward. Put such code into a module of its own "
            "and keep it whole with leaf_modules=(ThatModule,)"
        )


def _gradients(model: nn.Module, output: object) -> dict[str, Tensor | None]:
    total = torch.zeros(())
    for seed, leaf in enumerate(_tensors(output)):
        if leaf.requires_grad:
            weights = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(seed))
            total = total + (leaf.float() * weights.to(leaf.device)).sum().cpu()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters()}


def _differing(wanted: dict[str, Tensor | None], got: dict[str, Tensor | None]) -> str | None:
    scale = max((float(g.abs().max()) for g in wanted.values() if g is not None and g.numel()), default=0.0)
    for name, gradient in wanted.items():
        other = got.get(name)
        if (gradient is None) != (other is None):
            return name
        if gradient is None or other is None:
            continue
        if float((gradient - other).abs().max()) > 10 * TOLERANCE.get(gradient.dtype, 1e-2) * max(scale, 1e-12):
            return name
    return None


def _compare(wanted: object, got: object, when: str) -> None:
    pairs = list(zip(_tensors(wanted), _tensors(got), strict=False))
    same_form = pytree.tree_structure(wanted) == pytree.tree_structure(got)
    if not same_form or any(a.shape != b.shape for a, b in pairs):
        raise CaptureError(f"the traced model's outputs have another form {when}")
    error = max((relative_error(b, a) - TOLERANCE.get(a.dtype, 0.0) for a, b in pairs), default=0.0)
    if error > 0:
        raise CaptureError(f"the traced model's outputs differ by {error:.1e} relative {when}")


def _enliven(model: nn.Module, traced: nn.Module, inputs: list[Tensor]) -> None:
    """A head that is all zeros makes every comparison pass: then both get the same random values there."""
    if any(bool(leaf.abs().max() > 1e-12) for leaf in _tensors(_run(model, inputs)) if leaf.numel()):
        return
    twins = dict(traced.named_parameters())
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.is_floating_point() and not parameter.any():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1
                for target in (parameter, twins[name]):
                    target.copy_(noise)


def _run(model: nn.Module, inputs: Sequence[Tensor], *, seed: int = 11, grad: bool = False) -> object:
    with torch.random.fork_rng(), torch.set_grad_enabled(grad):
        torch.manual_seed(seed)
        return model(*(x.clone() for x in inputs))


def _noisy(tensor: Tensor, seed: int) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)).to(tensor)
    return tensor + 0.1 * noise


def _tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _named(value: object) -> str:
    return f"a {type(value).__name__} ({str(value)[:60]})"
