"""What a result can do once the search is over: travel, stand alone, and be done again on another checkpoint."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxsurgery
from evolutions import evolved
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.errors import RunError, SpecError, SurgeryError
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program
from fxsurgery.result import BeforeAfter, Result
from nonempty import nonempty
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
    for path in nonempty(p for p in (tmp_path / "saved").rglob("*") if p.is_file()):
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
    with pytest.raises(RunError, match="contains other files"):
        result().save(tmp_path)
    with pytest.raises(RunError, match=r"notes\.txt is a file, and a folder is written there"):
        result().save(tmp_path / "notes.txt")


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
    assert all(torch.equal(before[name], tensor) for name, tensor in nonempty(later.state_dict().items()))


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


class Drops(nn.Module):
    """Drops whole samples in training, unless its rate is 0: then it can be looked into."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.first, self.second = rate, nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x).relu())
        if self.rate and self.training:
            y = y * torch.floor(1 - self.rate + torch.rand(len(y), 1)) / (1 - self.rate)
        return x + y


def test_replay_keeps_whole_those_of_a_type_alone_that_were(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 4), Drops(0.0), Drops(0.2), nn.Linear(4, 3)).eval()
    original = capture(model, torch.randn(2, 5))
    assert {str(n.target) for n, m in original.calls(Drops)} == {"2"}
    done = Result(pruned(original), original, "accuracy", {})
    assert done.log
    x = torch.randn(3, 5)
    assert torch.equal(done.replay(model)(x), done.model(x))
    done.save(tmp_path / "saved")
    assert torch.equal(fxsurgery.load(tmp_path / "saved", original=model).model(x), done.model(x))


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


def test_an_evolution_and_its_front_are_saved_and_loaded(tmp_path: Path) -> None:
    fresh = evolved()
    fresh.save(tmp_path / "saved")
    loaded = fxsurgery.load(tmp_path / "saved")
    assert loaded.search == fresh.search
    assert loaded.summary() == fresh.summary()
    assert len(loaded.pareto) == len(fresh.pareto) > 2
    for ours, theirs in nonempty(zip(fresh.pareto, loaded.pareto, strict=True)):
        assert (ours.trial, ours.score, ours.cost) == (theirs.trial, theirs.score, theirs.cost)
        assert torch.equal(ours.model(*fresh.example_inputs), theirs.model(*fresh.example_inputs))
    loaded.save(tmp_path / "saved")
    assert fxsurgery.load(tmp_path / "saved").summary() == fresh.summary()


def test_how_a_budget_of_latency_was_held_is_kept(tmp_path: Path) -> None:
    figures = {"original_ms": 4.0, "ms": 1.9, "low_ms": 1.8, "high_ms": 2.0, "limit_ms": 2.0, "batch": 1}
    replace(result(), latency=figures).save(tmp_path / "saved")
    assert fxsurgery.load(tmp_path / "saved").latency == figures
    assert replace(evolved(), latency=figures).member(0).latency == {}


def test_scores_that_are_no_numbers_are_saved_and_loaded(tmp_path: Path) -> None:
    made = evolved()
    assert made.search is not None
    odd = replace(made.search.trials[3], score=math.nan, scores=((1.0, math.inf), (2.0, math.nan)))
    candidates = (*made.search.trials[:3], odd, *made.search.trials[4:])
    replace(made, search=replace(made.search, trials=candidates)).save(tmp_path / "saved")
    assert repr(fxsurgery.load(tmp_path / "saved").search) == repr(replace(made.search, trials=candidates))


def test_a_result_without_a_front_takes_the_place_of_one_that_had_one(tmp_path: Path) -> None:
    evolved().save(tmp_path / "saved")
    result().save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "pareto").exists()
    loaded = fxsurgery.load(tmp_path / "saved")
    assert (loaded.search, loaded.pareto) == (None, ())


def test_a_result_of_another_method_has_no_word_of_evolution(tmp_path: Path) -> None:
    """So what was saved before there was any is what is saved now."""
    result().save(tmp_path / "saved")
    facts = json.loads((tmp_path / "saved" / "result.json").read_text())["facts"]
    assert facts.keys() == {"metric_name", "metrics", "figures", "notes", "history", "gates", "seed", "asked"}
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["original", "program", "result.json"]
    assert "evolved" not in result().summary()


@pytest.mark.parametrize("change", [{"winner": 999}, {"winner": None}, {"trials": ()}])
def test_a_damaged_evolution_is_named(tmp_path: Path, change: dict) -> None:
    made = evolved()
    assert made.search is not None
    replace(made, search=replace(made.search, **change)).save(tmp_path / "saved")
    with pytest.raises(RunError, match="saved is damaged"):
        fxsurgery.load(tmp_path / "saved")


def test_a_front_without_its_programs_is_named(tmp_path: Path) -> None:
    evolved().save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "pareto" / "1")
    with pytest.raises(RunError, match="pareto/1"):
        fxsurgery.load(tmp_path / "saved")


def test_the_summary_has_the_front_and_what_was_spent() -> None:
    made = evolved()
    assert made.search is not None
    lines = made.summary().splitlines()
    [told] = [line for line in lines if line.startswith("evolved")]
    assert told == f"evolved: {made.search.trained} networks trained, {made.search.spent:g} of 1,000 epochs spent"
    head = next(i for i, line in enumerate(lines) if line.startswith("Pareto front"))
    assert lines[head].split() == "Pareto front accuracy parameters MACs what was done (* the winner)".split()
    for number, (line, member) in nonempty(enumerate(zip(lines[head + 1 :], made.pareto, strict=False))):
        chosen = member.trial.number == made.search.winner
        begins = [str(number), *(["*"] if chosen else []), f"{member.metric:.4f}", f"{member.cost.params:,}"]
        assert line.split()[: len(begins)] == begins
        done = made.search.done(member.trial.number)
        assert line.endswith(f"  {done}") if len(done) <= 60 else line.endswith(" changes)")
    assert lines[-1] == "note: a note"


def test_a_long_front_is_shown_in_part() -> None:
    made = evolved()
    long = replace(made, pareto=made.pareto[:1] * 40)
    lines = long.summary().splitlines()
    assert "   and 32 more: result.pareto" in lines
    shown = [line.split()[0] for line in lines if re.match(r" +\d+ ", line)]
    assert (shown[0], shown[-1], len(shown)) == ("0", "39", 8)


def test_a_member_of_the_front_can_be_taken_as_the_result(tmp_path: Path) -> None:
    made = evolved()
    number = next(i for i, m in enumerate(made.pareto) if m.trial.number != made.search.winner)  # type: ignore[union-attr]
    taken, member = made.member(number), made.pareto[number]
    assert taken.model is member.model
    assert taken.cost == (made.cost[0], member.cost)
    assert taken.history == ()
    assert {split: pair.after for split, pair in taken.metrics.items()} == {"val": member.metric}
    assert {name: pair.after for name, pair in taken.figures.items()} == {"accuracy (val)": member.metric}
    assert taken.search is not None
    assert taken.search.winner == member.trial.number
    assert "(* this network" in taken.summary()
    assert "(* the winner" in made.summary()
    assert "accuracy after the last epoch that each of these trained, on the validation data" in taken.summary()
    taken.save(tmp_path / "saved")
    assert fxsurgery.load(tmp_path / "saved").summary() == taken.summary()
    x = made.example_inputs
    assert torch.equal(taken.replay(made.original.graph_module)(*x), fxsurgery.load(tmp_path / "saved").model(*x))


@pytest.mark.parametrize("number", [-1, 99])
def test_a_member_that_is_not_there_is_refused(number: int) -> None:
    with pytest.raises(SurgeryError, match=rf"no member {number}: the result has numbers 0 to \d+"):
        evolved().member(number)
    with pytest.raises(SurgeryError, match="has no Pareto front"):
        result().member(number)
