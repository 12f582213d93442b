"""A metric of several numbers, from the task to the result and back from a folder."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fxsurgery import Budget, Dnal, load, optimize
from fxsurgery.training import Task, adamw


def table(samples: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(samples))
    return x, x.sum(1, keepdim=True)


def errors(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    error = (output - target).abs()
    return {"mean": error.mean(), "largest": error.max()}


def test_the_selected_number_is_the_metric_and_the_others_are_figures(tmp_path: Path):
    task = Task.of(
        table(64), table(32), test_data=table(16), loss=nn.MSELoss(), metric=errors, select="largest",
        higher_is_better=False,
    )  # fmt: skip
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    config = Dnal(align=2, optimizer=adamw(1e-3), fewest_steps=5, most_steps=5)
    result = optimize(model, train_data=task, budget=Budget(macs=0.5), config=config, verbose=False)
    assert result.metric_name == "largest"
    assert set(result.figures) == {"mean (val)", "mean (test)"}
    x, y = table(16)
    with torch.no_grad():
        expected = errors(result.model(x), y)
    assert abs(result.metrics["test"].after - expected["largest"].item()) < 1e-5
    assert abs(result.figures["mean (test)"].after - expected["mean"].item()) < 1e-5
    assert "mean (val)" in result.summary()
    result.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.figures["mean (test)"].after == result.figures["mean (test)"].after
