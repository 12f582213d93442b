"""What nodes give, told without numbers: the same as a real run shows, and nothing of the program is changed."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree

from fxsurgery.analysis import node_values as module
from fxsurgery.analysis.node_values import node_values
from fxsurgery.analysis.real_run import real_run
from fxsurgery.capture import capture
from nonempty import nonempty


class Tied(nn.Module):
    """An embedding whose weight is the head's, a recurrent layer, a split and a size that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.recurrent(self.table(ids))
        first, second = states.split([2, states.shape[1] - 2], dim=1)
        return self.head(first), second.reshape(ids.shape[0], -1)


def convolutions() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(1)
    )


MODELS = {
    "tied": (Tied, lambda: torch.arange(10).reshape(2, 5)),
    "convolutions": (convolutions, lambda: torch.randn(2, 3, 6, 6)),
}


def _facts(value: object) -> object:
    return pytree.tree_map(lambda x: (tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x, value)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_without_numbers_tells_what_a_real_one_shows(name: str):
    make, example = MODELS[name]
    program = capture(make().eval(), example())
    values, real = node_values(program), real_run(program)
    assert values.meta_module is not None
    for node in nonempty(program.nodes):
        assert _facts(values.by_name[node.name]) == _facts(real.values[node.name]), node.name


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_program_is_changed(name: str):
    make, example = MODELS[name]
    program = capture(make().eval(), example())
    before = dict(program.graph_module.state_dict(keep_vars=True))
    copies, outputs = copy.deepcopy({k: v.detach() for k, v in before.items()}), program.run_examples()
    node_values(program)
    after = program.graph_module.state_dict(keep_vars=True)
    assert list(after) == nonempty(before)
    assert all(after[key] is before[key] for key in nonempty(before))
    assert all(torch.equal(after[key], copies[key]) for key in nonempty(copies))
    assert all(torch.equal(a, b) for a, b in zip(nonempty(program.run_examples()), outputs, strict=True))


def test_tied_parameters_are_one_without_numbers_as_well():
    program = capture(Tied().eval(), torch.arange(10).reshape(2, 5))
    bare = node_values(program).meta_module
    assert bare is not None
    assert len(list(bare.parameters())) == len(list(program.graph_module.parameters()))


class Counting(nn.Module):
    """Keeps whole what turns values into Python numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().abs().max())


def test_a_program_that_needs_numbers_is_run_once_for_real(monkeypatch: pytest.MonkeyPatch):
    model = nn.Sequential(nn.Linear(4, 3), Counting()).eval()
    program = capture(model, torch.randn(2, 4), leaf_modules=(Counting,))
    values = node_values(program)
    assert values.meta_module is None
    assert values.shape(program.nodes[-2]) == (2, 3)
    monkeypatch.setattr(module, "run_on_meta", lambda *_: pytest.fail("it was asked again"))
    assert node_values(program) is values


def test_what_is_no_tensor_has_a_length_or_nothing():
    program = capture(Tied().eval(), torch.arange(10).reshape(2, 5))
    values = node_values(program)
    by_target = {getattr(node.target, "__name__", str(node.target)): node for node in program.nodes}
    split = by_target["split"]
    assert not values.is_tensor(split)
    assert values.length(split) == 2
    assert values.shape(split) is None
    assert values.is_tensor(by_target["head"])
    assert values.length(by_target["head"]) is None
