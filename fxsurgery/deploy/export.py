"""ONNX export: PyTorch's current exporter, the older one if that fails, and a check before the file is kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxsurgery.batch_layout import Statement
from fxsurgery.deploy.chain import Chain
from fxsurgery.deploy.determinism import CPU
from fxsurgery.deploy.export_step import Export, Exporter, Opset
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.parity import Check
from fxsurgery.deploy.steps import DeployStep, Transform
from fxsurgery.errors import ExportError
from fxsurgery.example_inputs import ExampleInputs
from fxsurgery.option_types import FilePath, checked
from fxsurgery.seeding import seeded as seeded_states
from fxsurgery.surroundings import plain_surroundings


@checked(ExportError, apart=("example_inputs",))
@plain_surroundings()
@seeded_states(0, CPU)
def export_onnx(  # noqa: PLR0913 -- options, each by name
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    path: FilePath,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    opset: Opset = None,
    batch_dims: Statement = None,
    dynamic_batch: bool = True,
    exporter: Exporter = "auto",
    transforms: Sequence[Transform] = (),
    check: bool = True,
) -> OnnxModel:
    """Write `model` to `path` as one ONNX file, and compare the file with the model.

    The file's inputs are the tensors among the model's inputs, named like the parameters of `forward`, or by the keys
    of dicts; everything else among them becomes a constant. The file's outputs are the tensors of the model's output,
    of any structure, in order, named by the keys of a dict or the fields of a dataclass.

    Args:
        model: it is not changed; a copy in eval mode on the CPU is exported.
        example_inputs: what the model is called with: a tensor, a tuple of positional inputs, a dict of inputs by name,
            or a `DataLoader`; arrays of numpy do as well. See `fxsurgery.example_inputs`.
        path: where the file goes, written whole or not at all; missing directories are created.
        example_kwargs: inputs by name, beside the others.
        opset: version of the operator set; the exporter chooses by default.
        batch_dims: which dim of the inputs is the batch, as for `fxsurgery.capture`; by default inferred from what the
            model's outputs follow: dim 0 of the first input, unless only another fits. No other size is dynamic.
        dynamic_batch: whether the file accepts any batch size.
        exporter: `"dynamo"`, `"legacy"` (ten times as fast, deprecated in PyTorch), or `"auto"`: the first, and the
            second where that fails or the opset is below 18.
        transforms: rewrite the file before it is checked, such as `(fxsurgery.deploy.ToFloat16(),)`.
        check: whether to compare the file with PyTorch through ONNX Runtime, at two batch sizes where the batch is
            dynamic. Integers whose order matters, such as offsets, are checked on the values given;
            `parity.kept_inputs` names them. A model that draws random numbers in `forward` needs `check=False`.

    Returns:
        The file, its inputs and outputs, and how well it agrees with PyTorch.

    Raises:
        DataError: the example inputs have no known form, or `batch_dims` does not fit them.
        ExportError: the opset is not supported, no exporter succeeds, the file disagrees with the model, or it cannot
            be written. A file that was at `path` before is still there.
    """
    steps: list[DeployStep] = [Export(exporter, opset, dynamic_batch), *transforms]
    chain = Chain((*steps, *((Check(),) if check else ())))
    return chain.run(model, example_inputs, path, example_kwargs=example_kwargs, batch_dims=batch_dims).file
