"""How a model, a loss and a metric are called, and what is said when they do not fit the data."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fxsurgery.errors import DataError
from fxsurgery.training import Recipe, Task, adamw, evaluate, fit, recalibrate


@dataclass
class Output:
    logits: Tensor
    features: Tensor


class Reader(nn.Module):
    """(batch, length) tokens and mask to an object with logits (batch, 2)."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(7, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        x = self.embedding(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        features = self.norm(x.sum(1))
        return Output(self.head(features), features)


class Whole(Reader):
    """The same, of one dict."""

    def forward(self, batch: dict[str, Tensor]) -> Output:
        return super().forward(batch["input_ids"], batch["attention_mask"])


def texts(samples: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    ids = torch.randint(0, 7, (samples, 5), generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (samples, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": ((ids == 3) & mask).any(1).long()}


@pytest.mark.parametrize("model", [Reader, nn.Linear], ids=["several", "one"])
def test_entries_that_the_model_does_not_take_are_named_with_the_remedy(model):
    names = ["input_ids", "text", "id"] if model is Reader else ["input", "text", "id"]
    batch = {name: torch.zeros(2, 5) if name.startswith("input") else ["a", "b"] for name in names}
    rows = DataLoader([{**batch, "labels": torch.zeros(2)}], batch_size=None)
    with pytest.raises(
        DataError, match=r"no parameter 'text', 'id', it takes input.*split=lambda batch: \(\{'input.*labels"
    ) as caught:
        evaluate(model(5, 2) if model is nn.Linear else model(), Task(rows, rows))
    assert "Task.of" in str(caught.value)


def test_inputs_by_position_that_are_too_many_name_split_too():
    rows = [(torch.zeros(2, 5), torch.zeros(2), torch.zeros(2))]
    loader = DataLoader(rows, batch_size=None)
    with pytest.raises(DataError, match=r"by position; split= of the task says otherwise.*positional arguments"):
        evaluate(nn.Linear(5, 2), Task(loader, loader))


def seeded(build: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def nll(output: Output, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.logits, target)


def dict_and_target() -> tuple[dict[str, Tensor], Tensor]:
    data = texts()
    return data, data.pop("labels")


@pytest.mark.parametrize("model", [Reader, Whole])
@pytest.mark.parametrize("data", [texts, dict_and_target])
@pytest.mark.parametrize("loss", [None, nll])
def test_learns_from_batches_that_are_dicts(model, data, loss):
    task = Task.of(data(), data(), batch_size=16, loss=loss)
    net = seeded(model)
    report = fit(net, task, Recipe(steps=60, optimizer=adamw(0.05)), device="cpu")
    assert report.score.metric > 0.9 if loss is None else report.score.loss < 0.2
    assert recalibrate(net, task) == 1


def test_a_metric_sees_what_the_model_gives():
    task = Task.of(texts(), texts(), loss=nll, metric=lambda output, target: output.features.shape[1])
    assert evaluate(seeded(Reader), task).metric == 8


def test_a_name_that_the_model_does_not_have_is_told():
    task = Task.of({**texts(), "index": torch.arange(64)}, texts())
    with pytest.raises(DataError, match=r"input_ids=\(64, 5\) int64, .*by name; split=.*'index'"):
        fit(seeded(Reader), task, Recipe(steps=1, optimizer=adamw(0.05)), device="cpu")


def test_a_dict_of_outputs_is_read_by_attributes_too():
    class Nested(Reader):
        def forward(self, input_ids, attention_mask):
            return {"heads": {"first": super().forward(input_ids, attention_mask).logits}}

    def loss(output, target):
        return nn.functional.cross_entropy(output.heads.first, target) + 0 * output["heads"]["first"].sum()

    assert evaluate(seeded(Nested), Task.of(texts(), texts(), loss=loss)).samples == 64
    with pytest.raises(DataError, match="the output has no 'logits'; it has: heads"):
        evaluate(seeded(Nested), Task.of(texts(), texts(), loss=nll))


def test_an_output_without_logits_wants_a_loss_of_its_own():
    class Bare(Reader):
        def forward(self, input_ids, attention_mask):
            return {"scores": super().forward(input_ids, attention_mask).logits}

    with pytest.raises(DataError, match=r"the loss cannot take output dict\(scores=\(64, 2\) float32\).*`logits`"):
        evaluate(seeded(Bare), Task.of(texts(), texts()))
