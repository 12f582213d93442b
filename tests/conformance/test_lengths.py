"""Batches padded each to its own length: captured, trained, scored, saved, written as code and exported."""

import subprocess
import sys

import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fxsurgery
from fxsurgery import Budget, Prune
from fxsurgery.training import Task, evaluate
from nonempty import nonempty
from zoo import lively

LENGTHS = (1, 5, 11, 24)


class Tagger(nn.Module):
    """Mean of the tokens that count, with learned positions; a loop over time where `steps`."""

    def __init__(self, *, steps=False):
        super().__init__()
        self.embed, self.position = nn.Embedding(30, 16, padding_idx=0), nn.Parameter(torch.randn(1, 40, 16) * 0.1)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)
        self.steps = steps

    def forward(self, ids, mask):
        x = self.embed(ids) + self.position[:, : ids.shape[1]]
        x = x + self.down(torch.relu(self.up(x)))
        weight = mask[:, :, None]
        x = x * weight
        total = sum(x[:, step] for step in range(x.shape[1])) if self.steps else x.sum(1)
        return self.head(total / weight.sum(1))


def collate(rows):
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"ids": ids, "mask": (ids > 0).float(), "labels": ids[:, 0] % 4}


def loader(*, shuffle=False):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 30, (4 + i % 13,), generator=generator) for i in range(44)]
    return DataLoader(rows, batch_size=8, shuffle=shuffle, collate_fn=collate, generator=generator)


def given(length):
    ids = torch.randint(1, 30, (3, length), generator=torch.Generator().manual_seed(length))
    return ids, (ids % 5 > 0).float().index_fill(1, torch.tensor([0]), 1.0)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return lively(Tagger())


@pytest.fixture(scope="module")
def result(model):
    return fxsurgery.optimize(
        model,
        train_data=loader(shuffle=True),
        val_data=loader(),
        budget=Budget(params=0.8),
        config=Prune(fewest_steps=6, most_steps=6, align=1),
        verbose=False,
    )


def test_training_and_scores_see_every_length_whole(model, result):
    right = [
        sum(int((m.eval()(b["ids"], b["mask"]).argmax(1) == b["labels"]).sum()) for b in loader()) / 44
        for m in (model, result.model)
    ]
    score = result.metrics["val"]
    assert (score.before, score.after) == (pytest.approx(right[0]), pytest.approx(right[1]))
    assert evaluate(result.model, Task(loader(), loader())).metric == pytest.approx(right[1])
    assert not [note for note in result.notes if "size" in note]


def test_what_is_saved_and_written_as_code_takes_every_length(result, tmp_path):
    result.save(tmp_path / "saved")
    result.save_standalone(tmp_path / "code")
    again = fxsurgery.load(tmp_path / "saved").model
    torch.save([given(n) for n in LENGTHS], tmp_path / "given.pt")
    code = (
        "import sys, torch; sys.path.insert(0, 'code'); import model; m = model.load();"
        "torch.save([m(*x) for x in torch.load('given.pt')], 'got.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    for length, standalone in zip(LENGTHS, torch.load(tmp_path / "got.pt"), strict=True):
        wanted = result.model(*given(length))
        assert torch.equal(again(*given(length)), wanted)
        assert torch.allclose(standalone, wanted, atol=1e-6)


def test_the_onnx_file_says_which_axes_are_free(result, tmp_path):
    file = result.export_onnx(tmp_path / "small.onnx")
    assert file.parity is not None
    for value in nonempty(onnx.load(tmp_path / "small.onnx").graph.input):
        batch, length = value.type.tensor_type.shape.dim
        assert batch.dim_param
        assert length.dim_value == result.program.example_kwargs["ids"].shape[1]


def test_a_model_that_loops_over_time_says_which_input_has_one_length():
    with pytest.raises(fxsurgery.DataError, match=r"`ids` must have size \d+ along dim 1.*pad or crop"):
        fxsurgery.optimize(
            lively(Tagger(steps=True)),
            train_data=loader(shuffle=True),
            val_data=loader(),
            budget=Budget(params=0.8),
            config=Prune(fewest_steps=6, most_steps=6),
            verbose=False,
        )


def test_inspect_says_so_too():
    found = fxsurgery.inspect(lively(Tagger(steps=True)), given(5))
    assert "note: `ids` must have size 5 along dim 1" in str(found) or "note: `mask` must have size 5" in str(found)
