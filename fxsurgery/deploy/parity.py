"""Does the exported file compute what the model computes? Asked of ONNX Runtime, at two batch sizes."""

import copy
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxsurgery.deploy.onnx_model import Parity
from fxsurgery.errors import ExportError
from fxsurgery.surgery import relative_error

LIMIT = 1e-4
"""Float32 rounding in another order of summation; exporters that are right stay below 1e-5."""


def check_parity(
    model: nn.Module,
    path: Path,
    example_inputs: tuple[Tensor, ...],
    *,
    dynamic_batch: bool = True,
    limit: float = LIMIT,
) -> Parity:
    """Compare a file with the model it came from, on seeded inputs shaped like the examples.

    Args:
        model: on the CPU, in eval mode.
        path: the ONNX file.
        example_inputs: the model's positional inputs.
        dynamic_batch: whether the file takes another batch size than the examples'.
        limit: the largest relative error that passes.

    Raises:
        ExportError: the file does not load or run, its outputs have other shapes, or they differ.
    """
    session = open_session(path)
    sizes = _batch_sizes(example_inputs, dynamic_batch=dynamic_batch)
    worst = 0.0
    for size in sizes:
        inputs = tuple(seeded_like(x, size, seed) for seed, x in enumerate(example_inputs))
        wanted, got = outputs_of(model, inputs), run_session(session, inputs)
        if [tuple(o.shape) for o in wanted] != [tuple(o.shape) for o in got]:
            shapes = [[tuple(o.shape) for o in side] for side in (wanted, got)]
            raise ExportError(
                f"{path.name}: at batch size {size} ONNX Runtime gives shapes {shapes[1]}, not {shapes[0]}"
            )
        worst = max(worst, *map(relative_error, got, wanted))
    if worst > limit:
        raise ExportError(
            f"{path.name}: ONNX Runtime and PyTorch differ by {worst:.1e} relative (limit {limit:.0e}, batch sizes "
            f"{', '.join(map(str, sizes))}); the file was not kept"
        )
    return Parity(worst, sizes, enlivened=False)


def is_vacuous(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> bool:
    """Whether the outputs are the same for other inputs: then they agree with anything."""
    first, second = (
        outputs_of(model, tuple(seeded_like(x, len(x) if x.dim() else 1, seed) for x in example_inputs))
        for seed in (0, 1)
    )
    return all(relative_error(a, b) < 1e-6 for a, b in zip(first, second, strict=True))


def enlivened(model: nn.Module) -> nn.Module:
    """A copy whose all-zero parameters are random: a zero-initialised head hides every fault before it."""
    lively = copy.deepcopy(model)
    with torch.no_grad():
        for seed, parameter in enumerate(lively.parameters()):
            if parameter.is_floating_point() and not parameter.any():
                generator = torch.Generator().manual_seed(seed)
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lively


def seeded_like(example: Tensor, batch: int, seed: int) -> Tensor:
    """Another input of the example's kind: noise about it for floats, its own values dealt anew for integers."""
    generator = torch.Generator().manual_seed(seed)
    if not example.dim():
        return example.clone()
    rows = example[torch.arange(batch) % len(example)].clone()
    if not example.is_floating_point():
        return rows.flatten()[torch.randperm(rows.numel(), generator=generator)].reshape(rows.shape)
    spread = float(example.float().std(correction=0)) or 1.0
    return rows + spread * torch.randn(rows.shape, generator=generator).to(rows.dtype)


def outputs_of(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The model's output tensors, in order."""
    with torch.no_grad():
        output = model(*(x.clone() for x in inputs))
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """A CPU session of ONNX Runtime.

    Raises:
        ExportError: the file cannot be loaded.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base
        raise ExportError(f"ONNX Runtime cannot load {path}: {error}") from error


def run_session(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a session on tensors, by position.

    Raises:
        ExportError: it does not run.
    """
    names = [i.name for i in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=False)}
    try:
        return [torch.from_numpy(o) for o in session.run(None, feed)]
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot run the model: {error}") from error


def _batch_sizes(inputs: tuple[Tensor, ...], *, dynamic_batch: bool) -> tuple[int, ...]:
    size = next((len(x) for x in inputs if x.dim()), 1)
    return (size, size + 1) if dynamic_batch else (size,)
