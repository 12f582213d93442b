"""If the model's own forward contains unsupported code, the function that contains it becomes a leaf."""

import copy
import io

import torch
from torch import nn
from torchvision.ops import batched_nms

from capture.parity import taken
from fxsurgery.passes import PruneChannels


def longest(x, scores):
    """As many rows as the values say, padded to what went in."""
    kept = [row for row, score in zip(x, scores, strict=True) if float(score.sum().detach()) > 0]
    return torch.cat([torch.stack(kept), x[len(kept) :]]) if kept else x


def twice_removed(x, scores):
    return longest(x, scores) * 2


class Picks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.out, self.score = nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x):
        x = self.body(x)
        return twice_removed(self.out(x), self.score(x))


class Detects(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.box, self.score = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x):
        x = self.body(x).relu()
        low = self.box(x).sigmoid()
        boxes, scores = torch.cat([low[:, :2], low[:, :2] + low[:, 2:] + 1], 1), self.score(x).squeeze(1)
        best = scores[batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.long), 0.5)[:1]]
        return boxes * best


def test_the_innermost_function_is_kept_as_leaf_and_named():
    program = taken(Picks(), torch.randn(5, 6))
    (note,) = [n for n in program.notes if "kept as a leaf" in n]
    assert note.startswith(f"the function `{__name__}.longest` is kept as a leaf: a tensor value is converted")
    assert "`kept = [row for row, score in zip" in note
    assert [n.target for n in program.nodes if n.target is longest] == [longest]
    assert not [n for n in program.nodes if n.target is twice_removed]


def test_the_rest_is_pruned_and_what_flows_into_the_function_stays():
    program = taken(Picks(), torch.randn(5, 6))
    smaller = PruneChannels((("body.0", (0, 3)), ("body.2", (1,))))(program)
    assert smaller.error is not None
    assert smaller.error < 1e-5
    assert smaller.program.graph_module.get_submodule("out").out_features == 4


def test_the_program_copies_and_is_read_back():
    program, x = taken(Picks(), torch.randn(5, 6)), torch.randn(3, 6)
    file = io.BytesIO()
    torch.save(program.graph_module, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert torch.equal(read(x), program(x))
    assert torch.equal(copy.deepcopy(program.graph_module)(x), program(x))


def test_a_models_functions_are_as_they_were():
    before = (longest, twice_removed)
    taken(Picks(), torch.randn(5, 6))
    assert (longest, twice_removed) == before
    assert globals()["longest"] is before[0]


def test_a_librarys_function_is_taken():
    program = taken(Detects(), torch.randn(5, 6))
    assert torch.equal(program(torch.ones(4, 6)).isfinite(), torch.ones(4, 4, dtype=torch.bool))
