"""What the check catches, and when it would mean nothing."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploy.samples import Constant, Reader, Residual, Tokens, TwoInputs, noise, reading, residual, seeded
from fxsurgery.deploy import check_parity, export_onnx
from fxsurgery.deploy.random_inputs import seeded as other_inputs
from fxsurgery.errors import ExportError
from fxsurgery.inputs import Inputs
from nonempty import nonempty

IMAGES = (noise(2, 3, 8, 8),)


class Labels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x).argmax(1), self.head(x) > 0


class WithAnchors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), torch.arange(4) + 0 * x.shape[0]


def exported(model, inputs, folder, **options):
    return export_onnx(model, inputs, folder / "m.onnx", exporter="legacy", **options).path


def tamper(path, amount):
    """Add to one element of the largest initializer."""
    file = onnx.load(path)
    largest = max(file.graph.initializer, key=lambda i: np.prod(i.dims))
    array = numpy_helper.to_array(largest).copy()
    array.flat[0] += amount
    largest.CopyFrom(numpy_helper.from_array(array, largest.name))
    onnx.save(file, path)


def test_a_faithful_file_passes(tmp_path):
    model = residual()
    parity = check_parity(model, str(exported(model, IMAGES, tmp_path)), IMAGES)
    assert parity.error == max(parity.errors) < 1e-5
    assert not parity.enlivened
    assert parity.constant_outputs == ()


def test_one_wrong_weight_is_caught_with_figures(tmp_path):
    model = residual()
    path = exported(model, IMAGES, tmp_path)
    tamper(path, 0.5)
    with pytest.raises(ExportError, match=r"differ, .*: \d\.\de-\d+ \(limit 1e-04\)"):
        check_parity(model, path, IMAGES)


def test_one_wrong_output_of_two_is_caught(tmp_path):
    inputs = (noise(2, 4), noise(2, 6))
    path = exported(seeded(TwoInputs), inputs, tmp_path)
    tamper(path, 0.5)
    with pytest.raises(ExportError, match="differ"):
        check_parity(seeded(TwoInputs), path, inputs)


def test_a_wrong_file_of_a_model_called_by_name_is_caught(tmp_path):
    path = exported(seeded(Reader), (), tmp_path, example_kwargs=reading())
    assert check_parity(seeded(Reader), path, (), example_kwargs=reading()).error < 1e-5
    tamper(path, 0.5)
    with pytest.raises(ExportError, match="differ"):
        check_parity(seeded(Reader), path, (), example_kwargs=reading())


def test_the_limit_can_be_set(tmp_path):
    model = residual()
    path = exported(model, IMAGES, tmp_path)
    tamper(path, 0.01)
    with pytest.raises(ExportError, match="limit 1e-04"):
        check_parity(model, path, IMAGES)
    assert 1e-4 < check_parity(model, path, IMAGES, rtol=0.02).error < 0.02


def test_a_batch_size_frozen_into_the_file_is_caught(tmp_path):
    model = residual()
    path = exported(model, IMAGES, tmp_path, dynamic_batch=False)
    check_parity(model, path, IMAGES, dynamic_batch=False)
    with pytest.raises(ExportError, match="ONNX Runtime cannot run the model"):
        check_parity(model, path, IMAGES)


def test_a_file_of_another_model_is_refused(tmp_path):
    path = exported(seeded(TwoInputs), (noise(2, 4), noise(2, 6)), tmp_path)
    with pytest.raises(ExportError, match="the file takes 2 inputs"):
        check_parity(residual(), path, IMAGES)
    with pytest.raises(ExportError, match=r"gives \(2, 5\) float32, .*, not \(2, 5\) float32"):
        check_parity(Sum().eval(), path, (noise(2, 4), noise(2, 6)))
    with pytest.raises(ExportError, match="there is no file"):
        check_parity(residual(), tmp_path / "none.onnx", IMAGES)
    path.write_bytes(b"not onnx")
    with pytest.raises(ExportError, match="cannot load"):
        check_parity(residual(), path, IMAGES)


class Sum(TwoInputs):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


def zero_headed():
    model = seeded(Residual)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_a_zero_head_is_checked_on_a_lively_twin(tmp_path, exporter):
    found = export_onnx(zero_headed(), IMAGES, tmp_path / "m.onnx", exporter=exporter)
    assert found.parity.enlivened
    assert found.parity.error < 1e-4
    assert found.parity.spread > 0.01
    assert not any(
        nonempty(numpy_helper.to_array(i).any() for i in onnx.load(found.path).graph.initializer if "head" in i.name)
    )


def test_a_zero_head_alone_proves_nothing(tmp_path):
    path = exported(zero_headed(), IMAGES, tmp_path)
    with pytest.raises(ExportError, match="hardly depend on its inputs"):
        check_parity(zero_headed(), path, IMAGES)


def test_a_zero_weight_within_a_branch_calls_for_the_twin_too(tmp_path):
    model = seeded(Residual)
    nn.init.zeros_(model.block[1].weight)
    assert export_onnx(model, IMAGES, tmp_path / "m.onnx", exporter="legacy").parity.enlivened


def test_a_zero_bias_hides_nothing(tmp_path):
    model = seeded(Residual)
    nn.init.zeros_(model.head.bias)
    assert not export_onnx(model, IMAGES, tmp_path / "m.onnx", exporter="legacy").parity.enlivened


def test_an_export_of_a_twin_that_is_wrong_is_caught(tmp_path):
    path = exported(zero_headed(), IMAGES, tmp_path)

    def wrong(twin, file):
        export_onnx(twin, IMAGES, file, exporter="legacy")
        tamper(file, 0.5)

    with pytest.raises(ExportError, match="differ"):
        check_parity(zero_headed(), path, IMAGES, reexport=wrong)


def test_a_model_that_ignores_its_input_is_refused(tmp_path):
    with pytest.raises(ExportError, match="hardly depend on its inputs"):
        exported(Constant(), (noise(2, 3),), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_integers_that_cannot_vary_are_named(tmp_path):
    with pytest.raises(ExportError, match="example input tokens holds a single value"):
        exported(seeded(Tokens), (torch.zeros(2, 7, dtype=torch.long),), tmp_path)


def test_one_constant_output_among_others_is_told(tmp_path):
    path = exported(seeded(WithAnchors), (noise(3, 6),), tmp_path)
    assert check_parity(seeded(WithAnchors), path, (noise(3, 6),)).constant_outputs == (1,)


def test_labels_are_compared_by_share(tmp_path):
    parity = check_parity(seeded(Labels), exported(seeded(Labels), (noise(50, 6),), tmp_path), (noise(50, 6),))
    assert parity.errors == (0.0, 0.0)
    assert parity.spread > 0.1


def test_the_model_is_left_alone(tmp_path):
    path = exported(seeded(Residual), IMAGES, tmp_path)
    model = seeded(Residual).train()
    check_parity(model, path, IMAGES)
    assert all(m.training for m in model.modules())


def test_a_model_whose_signal_has_died_down_is_still_compared_on_its_own_scale(tmp_path):
    model = seeded(Residual)
    with torch.no_grad():
        model.head.weight.mul_(1e-20)
        model.head.bias.zero_()
    path = exported(model, IMAGES, tmp_path)
    assert check_parity(model, path, IMAGES).spread > 0.01
    tamper(path, 0.5)
    with pytest.raises(ExportError, match="differ"):
        check_parity(model, path, IMAGES)


def test_masks_are_dealt_within_their_rows():
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    dealt, causal = other_inputs(Inputs((mask,), {"causal": torch.ones(4, 4).tril().long()}), 3, 0).tensors
    assert dealt.sum(1).tolist() == [1, 3, 1]
    assert causal.sum(1).tolist() == [1, 2, 3, 4]
    assert not torch.equal(dealt[:2], mask)


def test_what_is_infinite_stays_so():
    [found] = other_inputs(Inputs((torch.tensor([[0.0, 1.0, -torch.inf]]),)), 2, 0).tensors
    assert found.isneginf().tolist() == [[False, False, True]] * 2
    assert found[:, :2].min() >= 0


def test_other_inputs_keep_to_what_the_examples_hold():
    examples = (torch.rand(4, 3), torch.arange(8).reshape(4, 2), noise(5, 2), torch.tensor(2.0))
    floats, integers, unbatched, scalar = other_inputs(Inputs(examples), 7, 0).tensors
    assert (floats.shape, integers.shape, unbatched.shape) == ((7, 3), (7, 2), (5, 2))
    assert floats.min() >= examples[0].min()
    assert set(nonempty(integers.flatten().tolist())) <= set(range(8))
    assert scalar == 2.0
    again, other = (other_inputs(Inputs(examples), 7, seed).tensors[0] for seed in (0, 1))
    assert torch.equal(again, floats)
    assert not torch.equal(other, floats)
