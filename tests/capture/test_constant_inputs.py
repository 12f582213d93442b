"""An input that is no tensor is a constant of the graph: another value is refused, wherever the graph goes."""

import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.deploy import export_onnx
from fxsurgery.passes import PruneChannels
from fxsurgery.saving import load_program, save_program
from fxsurgery.saving.standalone import source
from zoo import lively

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Options(nn.Module):
    """Computes something else for each value of its options."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, scale=1.0, *, times=1, order="normal", squash=None, dtype=torch.float32, dims=(0, 1)):
        y = torch.relu(self.first(x)) * scale * (dims[1] + 1)
        for _ in range(times):
            y = y + 1
        y = y.flip(1) if order == "flipped" else y
        return torch.tanh(self.last(y)).to(dtype) if squash else self.last(y).to(dtype)


GIVEN = {"scale": 0.5, "times": 2, "order": "flipped", "squash": True, "dtype": torch.float64, "dims": (0, 2)}
OTHERS = [
    ("scale", 0.25, r"`scale` must be 0\.5"),
    ("times", 3, "`times` must be 2"),
    ("order", "normal", "`order` must be 'flipped'"),
    ("squash", False, "`squash` must be True"),
    ("squash", None, "`squash` must be True"),
    ("dtype", torch.float32, r"`dtype` must be torch\.float64"),
    ("dims", (0, 1), r"`dims\[1\]` must be 2"),
]


def taken(**given):
    model = lively(Options()).eval()
    return model, capture(model, X, example_kwargs=given)


def refuses(run, **given):
    with pytest.raises(AssertionError, match="as at capture: the graph computes with this constant; capture the"):
        run(X, **given)


@pytest.mark.parametrize(("name", "value", "message"), OTHERS)
def test_another_value_of_an_option_is_refused_by_name(name, value, message):
    _, program = taken(**GIVEN)
    with pytest.raises(AssertionError, match=message):
        program(X, **{**GIVEN, name: value})


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_same_values_compute_what_the_model_does_at_any_batch_size(batch):
    model, program = taken(**GIVEN)
    x = torch.randn(batch, 4)
    assert torch.allclose(program(x, **GIVEN), model(x, **GIVEN))


def test_an_option_that_was_none_takes_no_other_value_and_needs_no_note():
    model, program = taken(squash=None)
    assert not program.notes
    assert torch.allclose(program(X, squash=None), model(X))
    refuses(program, squash=True)


def test_the_notes_list_each_fixed_option():
    _, program = taken(**GIVEN)
    for _, _, message in OTHERS:
        assert any(re.search(message, note) for note in program.notes)


def test_the_check_outlives_surgery_saving_and_code(tmp_path):
    _, program = taken(**GIVEN)
    program = PruneChannels((("first", (0, 3)),))(program).program
    save_program(program, tmp_path / "saved")
    names = {"__name__": "model", "__file__": str(tmp_path / "model.py")}
    exec(compile(source(program), "model.py", "exec"), names)
    fresh = next(kind() for kind in names.values() if isinstance(kind, type) and issubclass(kind, nn.Module))
    fresh.load_state_dict(program.graph_module.state_dict())
    for run in (program, load_program(tmp_path / "saved"), fresh.eval()):
        assert torch.allclose(run(X, **GIVEN), program(X, **GIVEN))
        refuses(run, **{**GIVEN, "times": 3})


def test_a_model_with_options_is_exported(tmp_path):
    _, program = taken(scale=0.5, squash=True)
    exported = export_onnx(
        program.trainable_copy(), X, tmp_path / "model.onnx", example_kwargs={"scale": 0.5, "squash": True}
    )
    assert exported.parity.error < 1e-5


@dataclass
class Settings:
    scale: float = 2.0


def test_an_object_that_cannot_be_compared_is_noted():
    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, settings):
            return self.layer(x) * settings.scale

    program = capture(Configured(), X, example_kwargs={"settings": Settings()})
    assert any("`settings` is a constant of the graph, which ignores another Settings" in n for n in program.notes)


def test_a_number_that_equals_nothing_is_noted():
    _, program = taken(scale=float("nan"))
    assert program(X, scale=float("nan")).isnan().all()
    assert any("`scale` is a constant of the graph, which ignores another float" in note for note in program.notes)
