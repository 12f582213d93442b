"""A transformers model that computes its own loss from labels among its inputs goes all the way."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxsurgery import Budget, Dnal, optimize
from fxsurgery.training import Task, adamw

transformers = pytest.importorskip("transformers")


def texts(samples: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 50, (samples, 12), generator=torch.Generator().manual_seed(samples))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids == 3).any(1).long()}


def test_labels_among_the_inputs_and_no_target(tmp_path: Path):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    task = Task.of(
        texts(32), texts(16), batch_size=16, split=lambda batch: (batch, None), loss=lambda output, _: output.loss
    )
    result = optimize(
        transformers.BertForSequenceClassification(config),
        train_data=task,
        budget=Budget(macs=0.7),
        config=Dnal(align=2, optimizer=adamw(1e-3), fewest_steps=5, most_steps=5),
        verbose=False,
    )
    before, after = result.cost
    assert after.macs <= 0.7 * before.macs
    assert result.metric_name == "loss"
    answer = result.model(**texts(3))
    assert torch.allclose(answer.loss, torch.nn.functional.cross_entropy(answer.logits, texts(3)["labels"]))
    file = result.export_onnx(tmp_path / "small.onnx", exporter="legacy")
    assert file.inputs == ("input_ids", "attention_mask", "labels")
