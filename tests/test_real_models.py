"""The whole way on torchvision's families: at the budget, and an ONNX file that agrees."""

from pathlib import Path

import pytest
import torch

from fxsurgery import Budget, Dnal, optimize
from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.structure import structure
from fxsurgery.comparison import relative_error
from fxsurgery.searchers.common.widths import Choice, space
from nonempty import nonempty
from zoo import REAL, example

pytestmark = pytest.mark.slow
FEW = Dnal(architecture_epochs=2, finetune_epochs=1, fewest_steps=4, learning_rate=1e-3)


def one_step(choices: tuple[Choice, ...]) -> int:
    """The largest number of units between two widths that a group may have."""
    return max(a - b for c in choices for a, b in zip(c.counts, c.counts[1:], strict=False))


# An untrained SqueezeNet, which has no norms, hardly answers to its input once it is pruned at random labels: the
# export rightly refuses to call that agreement. Its surgery is proven in tests/passes/test_prune_channels.py.
@pytest.mark.parametrize("name", [name for name in REAL if name != "squeezenet1_1"])
def test_half_the_macs_and_onnx_agrees(name: str, tmp_path: Path):
    model, images = REAL[name](), example(name, batch=8)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    labels = torch.arange(8) % 10
    result = optimize(
        model,
        train_data=(images, labels),
        val_data=(images, labels),
        budget=Budget(macs=0.5),
        config=FEW,
        batch_size=8,
        verbose=False,
    )
    before, after = result.cost
    assert after.macs <= 0.5 * before.macs
    assert after.macs >= 0.48 * before.macs or one_step(space(result.original).choices) > 8
    assert cost(result.program) == after
    onnx = result.export_onnx(tmp_path / "small.onnx")
    assert onnx.parity is not None
    assert onnx.parity.error <= 1e-4
    assert all(torch.equal(v, weights[k]) for k, v in nonempty(model.state_dict().items()))
    outputs = [o.clone() for o in result.program.run_examples()]
    assert all(torch.isfinite(o).all() for o in nonempty(outputs))
    assert relative_error(outputs[0][:1], outputs[0][1:2]) > 1e-6
    assert not structure(result.original).unknown
