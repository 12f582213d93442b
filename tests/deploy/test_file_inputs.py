"""Inputs made from what a file declares."""

from pathlib import Path

import pytest
import torch
from torch import nn

from deploy.samples import TimeFirst, seeded
from fxsurgery.deploy import export_onnx
from fxsurgery.deploy.file_inputs import declared_inputs
from fxsurgery.deploy.ort_session import open_session, run_session
from fxsurgery.errors import ExportError


class Both(nn.Module):
    """(batch, 6) ids, (batch, 6, 3) -> (batch, 6, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, ids, weights):
        return self.table(ids) * weights


def test_a_file_runs_on_what_it_declares(tmp_path: Path):
    file = export_onnx(Both(), (torch.zeros(2, 6, dtype=torch.int64), torch.randn(2, 6, 3)), tmp_path / "both.onnx")
    inputs = declared_inputs(file.path, seed=3)
    assert {name: (tuple(x.shape), x.dtype) for name, x in inputs.kwargs.items()} == {
        "ids": ((1, 6), torch.int64),
        "weights": ((1, 6, 3), torch.float32),
    }
    assert run_session(open_session(file.path), inputs.kwargs)[0].shape == (1, 6, 3)
    assert torch.equal(inputs.kwargs["weights"], declared_inputs(file.path, seed=3).kwargs["weights"])


def test_a_file_with_free_sizes_is_refused(tmp_path: Path):
    import onnx
    from onnx import TensorProto, helper

    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "length"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "free", made[:1], made[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "free.onnx"
    )
    with pytest.raises(ExportError, match="input x has dynamic dims other than the batch"):
        declared_inputs(tmp_path / "free.onnx")


def test_the_batch_dim_of_our_files_becomes_one_wherever_it_is(tmp_path: Path):
    file = export_onnx(seeded(TimeFirst), (torch.randn(7, 3, 6),), tmp_path / "m.onnx")
    inputs = declared_inputs(file.path)
    assert (inputs.kwargs["steps"].shape, inputs.batch) == ((7, 1, 6), 1)
