"""What a result can do once the search is over: travel, stand alone, and be done again on another checkpoint."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.errors import RunError, SpecError
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program
from fxsurgery.result import BeforeAfter, Result
from zoo import ZOO, example, lively


def pruned(program: Program) -> Program:
    """`program` without a quarter of each channel group that can lose one."""
    drop = tuple(
        (group.name, tuple(range(0, len(group.units), 4)))
        for group in structure(program).groups
        if len(group.units) > 3
    )
    return PruneChannels(drop)(program).program


def result(name: str = "Residual") -> Result:
    model = ZOO[name]()
    original = capture(model, example(name))
    return Result(
        program=pruned(original),
        original=original,
        metric_name="accuracy",
        metrics={"val": BeforeAfter(0.9, math.nan), "test": BeforeAfter(0.8, 0.75)},
        notes=("a note",),
        history=({"stage": "fine-tune", "step": 3, "loss": math.inf}, {"stage": "end"}),
        gates=(0.0, 1.0, 0.5),
        seed=7,
        asked={"method": "prune", "budget": {"macs": 0.5}, "widths": [1, 2]},
    )


def test_a_saved_result_does_all_that_a_fresh_one_does(tmp_path: Path) -> None:
    fresh = result()
    fresh.save(tmp_path / "saved")
    loaded = fxsurgery.load(tmp_path / "saved")
    assert loaded.summary() == fresh.summary()
    assert (loaded.log, loaded.notes, loaded.history, loaded.gates, loaded.seed, loaded.asked) == (
        fresh.log, fresh.notes, fresh.history, fresh.gates, fresh.seed, fresh.asked
    )  # fmt: skip
    assert loaded.cost == fresh.cost
    x = example("Residual")
    assert torch.equal(loaded.model(x), fresh.model(x))
    assert torch.equal(loaded.original.graph_module(x), fresh.original.graph_module(x))
    loaded.save(tmp_path / "saved")
    assert fxsurgery.load(tmp_path / "saved").summary() == fresh.summary()


@pytest.mark.slow
def test_a_loaded_result_is_exported_and_measured(tmp_path: Path) -> None:
    result().save(tmp_path / "saved")
    loaded = fxsurgery.load(tmp_path / "saved")
    loaded.export_onnx(tmp_path / "model.onnx")
    assert loaded.benchmark(rounds=3)["result"].p50_ms > 0


def test_of_several_processes_the_first_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    made = result()
    made.save(tmp_path / "saved")
    made.save_standalone(tmp_path / "alone")
    assert made.report(tmp_path / "page.html") == tmp_path / "page.html"
    assert not list(tmp_path.iterdir())


def test_every_file_is_plain_json_or_safetensors(tmp_path: Path) -> None:
    result().save(tmp_path / "saved")
    for path in (p for p in (tmp_path / "saved").rglob("*") if p.is_file()):
        assert path.suffix in {".json", ".safetensors"}
        if path.suffix == ".json":
            json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_later_format_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    result().save(tmp_path / "saved")
    path = tmp_path / "saved" / "result.json"
    text = path.read_text()
    path.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(RunError, match=r"format 2.*update"):
        fxsurgery.load(tmp_path / "saved")
    path.write_text(text[:100])
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        fxsurgery.load(tmp_path / "saved")
    with pytest.raises(RunError, match="No such file"):
        fxsurgery.load(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="something else"):
        result().save(tmp_path)


def test_replay_does_the_same_surgery_to_another_checkpoint() -> None:
    done, later = result(), lively(ZOO["Residual"](), seed=5)
    before = {name: tensor.clone() for name, tensor in later.state_dict().items()}
    again = done.replay(later)
    shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in done.model.state_dict().items()}
    x = example("Residual")
    assert not torch.equal(again(x), done.model(x))
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(x), done.model(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in later.state_dict().items())


def test_replay_on_another_architecture_says_where_they_differ() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 9, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stem(x).mean((2, 3))

    with pytest.raises(
        SpecError, match=r"another architecture: `stem.weight` is \(9, 3, 3, 3\) here and \(8, 3, 3, 3\)"
    ):
        result().replay(Other())


class Kept(nn.Module):
    """Would be looked into, were it not for `leaf_modules`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(x).relu()


def test_replay_keeps_whole_what_the_capture_kept_whole(tmp_path: Path) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), Kept(), nn.Linear(4, 3)).eval()

    first = model()
    original = capture(first, torch.randn(2, 5), leaf_modules=(Kept,))
    done = Result(pruned(original), original, "accuracy", {})
    assert type(done.replay(model()).get_submodule("3")) is Kept
    done.save(tmp_path / "saved")
    loaded = fxsurgery.load(tmp_path / "saved", original=model())
    assert torch.equal(loaded.model(*loaded.example_inputs), done.model(*loaded.example_inputs))


def test_the_standalone_model_runs_without_fxsurgery(tmp_path: Path) -> None:
    done = result()
    done.save_standalone(tmp_path / "alone")
    assert sorted(p.name for p in (tmp_path / "alone").iterdir()) == [
        "model.py", "requirements.txt", "weights.safetensors"
    ]  # fmt: skip
    script = (
        "import sys; sys.modules['fxsurgery'] = sys.modules['safetensors'] = None; sys.path.insert(0, sys.argv[1])\n"
        "import runpy, model; runpy.run_path(model.__file__, run_name='__main__')\n"
        "print(sum(p.numel() for p in model.load().parameters()))"
    )
    command = [sys.executable, "-I", "-B", "-c", script, str(tmp_path / "alone")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert shown[:2] == ["torch.Size([2, 10])", str(done.cost[1].params)]
