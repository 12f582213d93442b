"""The front door: what it gives, and what it says when it cannot. The user's model never changes."""

import copy
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import fxsurgery
from devices import Device, milliseconds
from fxsurgery import Budget, Dnal, Prune, RunError, SurgeryError, capture, optimize, preparation
from fxsurgery.analysis.cost import cost
from fxsurgery.comparison import relative_error
from fxsurgery.errors import BudgetError, CaptureError, DataError, DeviceError, StructureError, TrainingError
from fxsurgery.passes import replay
from fxsurgery.searchers import dnal, session, trainer
from fxsurgery.searchers.common import latency_model
from fxsurgery.training import Amount, Recipe, Task
from fxsurgery.training.task import accuracy
from nonempty import nonempty

QUICK = Dnal(align=2, architecture_epochs=1, finetune_epochs=1, fewest_steps=20, learning_rate=0.01)


def images(count: int = 64, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, channels, 8, 8, generator=generator), torch.arange(count) % 4


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 16, 3),
            nn.BatchNorm2d(16),
        ]
        return nn.Sequential(*body, nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def quick(model: nn.Module, **options):
    given = {"train_data": images(), "val_data": images(32), "config": QUICK, "verbose": False, "batch_size": 16}
    return optimize(model, **{**given, **options})


def fingerprint(model: nn.Module) -> tuple:
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        {k: m.training for k, m in model.named_modules()},
        {k: (p.requires_grad, p.grad is None) for k, p in model.named_parameters()},
        torch.get_rng_state(),
    )


def same(one: tuple, other: tuple) -> bool:
    weights = one[0].keys() == other[0].keys() and all(torch.equal(v, other[0][k]) for k, v in one[0].items())
    return weights and one[1:3] == other[1:3] and torch.equal(one[3], other[3])


def test_the_whole_way(tmp_path: Path):
    model = net().train()
    before = fingerprint(model)
    result = quick(model, test_data=images(16), budget=Budget(macs=0.5))
    assert same(fingerprint(model), before)
    whole, small = result.cost
    assert small.macs <= 0.5 * whole.macs
    assert set(result.metrics) == {"val", "val, not fine-tuned", "test"}
    assert {"architecture", "fine-tune"} <= {record["stage"] for record in result.history}
    onnx = result.export_onnx(tmp_path / "small.onnx", exporter="legacy", opset=17)
    assert onnx.path.stat().st_size == onnx.bytes
    assert "MACs" in result.summary()
    report = result.benchmark(rounds=10, seconds=1.0)
    assert report["original"].ratio == 1.0
    assert report["result"].runs >= 10


def test_result_is_a_plain_module_with_the_users_names():
    result = quick(net())
    assert set(result.model.state_dict()) == set(nonempty(net().state_dict()))
    assert not any(type(m).__module__.startswith("fxsurgery") for m in result.model.modules())


def test_log_rebuilds_the_architecture():
    result = quick(net())
    rebuilt = replay(result.log, result.original)
    assert rebuilt.text() == result.program.text()
    shapes = [p.shape for p in nonempty(result.model.parameters())]
    assert [p.shape for p in rebuilt.graph_module.parameters()] == shapes


def test_same_seed_same_result():
    first, second = quick(net()), quick(net())
    assert first.log == second.log
    assert relative_error(first.program.run_examples()[0], second.program.run_examples()[0]) == 0.0


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_any_loss_not_only_classification():
    x, _ = images()
    y = torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)
    result = quick(Regressor(), train_data=(x, y), val_data=(x, y), loss=nn.functional.mse_loss)
    assert result.metric_name == "loss"
    assert result.cost[1].macs <= 0.5 * result.cost[0].macs


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


class Reader(nn.Module):
    """Tokens and a mask of those that count to logits (batch, 2), called by name."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.body, self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Answer:
        x = self.embedding(input_ids)
        x = x + self.attention(x, x, x, key_padding_mask=~attention_mask, need_weights=False)[0]
        features = ((x + self.body(x)) * attention_mask[..., None]).sum(1)
        return Answer(self.head(features), features)


def texts(samples: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    ids = torch.randint(0, 7, (samples, 5), generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (samples, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": ((ids == 3) & mask).any(1).long()}


def reader() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Reader()


def test_batches_that_are_dicts_and_an_output_that_is_an_object(tmp_path: Path):
    model = reader().train()
    before = fingerprint(model)
    result = quick(
        model,
        train_data=texts(),
        val_data=texts(32),
        loss=lambda output, target: nn.functional.cross_entropy(output.logits, target),
        metric=lambda output, target: (output.logits.argmax(1) == target).float().mean(),
    )
    assert same(fingerprint(model), before)
    assert result.cost[1].macs <= 0.5 * result.cost[0].macs
    assert list(result.example_kwargs) == ["input_ids", "attention_mask"]
    asked = {k: v for k, v in texts(3).items() if k != "labels"}
    assert result.model(**asked)["logits"].shape == (3, 2)
    file = result.export_onnx(tmp_path / "small.onnx", exporter="legacy")
    assert (file.inputs, file.outputs) == (("input_ids", "attention_mask"), ("logits", "features"))
    assert result.benchmark(rounds=3, seconds=1.0).batch == 1


def test_examples_may_be_given_by_name():
    asked = {k: v[:3] for k, v in texts().items() if k != "labels"}
    result = quick(reader(), train_data=texts(), val_data=texts(32), example_kwargs=asked)
    assert result.program.examples.batch == 3
    assert result.metric_name == "accuracy"


def test_what_capture_noted_is_told_before_training_and_in_the_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def noting(*args, **options):
        return replace(capture(*args, **options), notes=("`5` is kept as a leaf: a test",))

    monkeypatch.setattr(preparation, "capture", noting)
    result = quick(net(), verbose=True)
    shown = capsys.readouterr().err
    assert 0 < shown.index("note: `5` is kept as a leaf: a test") < shown.index("architecture: step")
    assert result.notes[0] == "`5` is kept as a leaf: a test"
    assert "note: `5` is kept as a leaf: a test" in result.summary()


def test_a_budget_in_milliseconds_is_met_as_measured(monkeypatch: pytest.MonkeyPatch):
    """On a made-up device, so that the test does not depend on how busy this one is."""
    monkeypatch.setattr(preparation, "Timer", lambda _, original, *__: Device(original))
    whole = milliseconds(capture(net().eval(), images()[0][:2]))
    for asked in (0.5 * whole, 0.5):
        result = quick(net(), budget=Budget(latency_ms=asked))
        found = milliseconds(result.program)
        assert 0.4 * whole < found <= 0.5 * whole
        assert result.latency == pytest.approx(
            {"original_ms": whole, "ms": found, "low_ms": found, "high_ms": found, "limit_ms": 0.5 * whole, "batch": 1}
        )
        assert any("ms allowed; measured interleaved, the ratio is 0." in note for note in result.notes)


def test_an_unverified_latency_is_not_returned(monkeypatch: pytest.MonkeyPatch):
    """Whatever a method says, the front door lets nothing through that it did not verify."""
    monkeypatch.setattr(preparation, "Timer", lambda _, original, *__: Device(original, bias=1.5))
    monkeypatch.setattr(latency_model, "hold", lambda model, cut, finish: finish(cut(model.limit), 1) and None)
    monkeypatch.setattr(dnal, "hold", latency_model.hold)
    with pytest.raises(BudgetError, match=r"a latency of .* ms \(original: .* ms\) is not met"):
        quick(net(), budget=Budget(latency_ms=0.5))


def test_a_budget_in_milliseconds_of_a_model_for_the_current_exporter_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """A batch norm without statistics, which the older exporter refuses and shows on the terminal."""
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    config = Prune(finetune_epochs=0)
    given = {"train_data": images(), "val_data": images(32), "config": config, "verbose": False, "batch_size": 16}
    assert fxsurgery.plan(model, **given).reach[2].original > 0
    result = quick(model, config=config, budget=Budget(latency_ms=1000.0))
    assert result.latency["high_ms"] <= result.latency["limit_ms"] == 1000.0
    assert result.export_onnx(tmp_path / "m.onnx").exporter == "dynamo"
    assert capfd.readouterr() == ("", "")


def test_what_can_be_reached_is_told_before_training(capsys: pytest.CaptureFixture[str]):
    quick(net(), verbose=True, budget=Budget(macs=0.5))
    shown = capsys.readouterr().err
    whole, started = cost(capture(net().eval(), images()[0][:2])), shown.index("architecture: step")
    for line in (f"params: {whole.params:,} now", f"macs: {whole.macs:,} now", "latency_ms: "):
        assert 0 <= shown.index(line) < started
    assert f"budget {whole.macs / 2:,.0f}" in shown[:started]


def test_nothing_trains_when_the_budget_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(session, "recalibrate", lambda *_, **__: pytest.fail("trained"))
    for data in ({}, {"train_data": None, "val_data": None, "example_inputs": (images(2)[0],)}):
        with pytest.raises(BudgetError, match="cannot be reached: the least is"):
            quick(net(), trained=bool(data), budget=Budget(macs=0.001), **data)


def test_a_plan_is_what_is_then_done(tmp_path: Path):
    model = net().train()
    before = fingerprint(model)
    options = {"train_data": images(), "val_data": images(32), "config": QUICK, "batch_size": 16, "trained": False}
    plan = fxsurgery.plan(model, **options, run_dir=tmp_path / "run")
    assert same(fingerprint(model), before)
    assert list(tmp_path.iterdir()) == []
    assert plan.seconds > 0
    result = quick(model, **options)
    steps = {record["stage"]: record["steps"] for record in result.history}
    assert {stage.name: stage.steps for stage in plan.stages} == steps
    params, macs, latency_ms = plan.reach
    assert (params.original, macs.original) == (result.cost[0].params, result.cost[0].macs)
    assert macs.least <= result.cost[1].macs <= macs.target
    assert latency_ms.original > 0
    assert "stage architecture: 20 steps" in str(plan)
    with pytest.raises(BudgetError, match="cannot be reached"):
        fxsurgery.plan(model, **options, budget=Budget(macs=0.001))
    with pytest.raises(SurgeryError, match=r"takes no 'bugdet'.*did you mean budget=\?"):
        fxsurgery.plan(model, bugdet=Budget(macs=0.5))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_turned_off_around_the_call(around):
    with around():
        result = quick(net())
        assert fxsurgery.plan(net(), config=QUICK).seconds > 0
    result.model.train()(torch.randn(4, *result.example_inputs[0].shape[1:])).sum().backward()


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch):
    """Few inputs are made, in few steps."""
    monkeypatch.setattr(Amount, "affordable", lambda _: Amount(samples=64, validation=32, steps=20, batch_size=64))


@pytest.mark.usefixtures("little")
def test_the_literal_call_works_without_data():
    learned = replace(QUICK, fewest_steps=80, weights_epochs=1)
    data = {"train_data": separable(), "val_data": separable(32), "budget": Budget(macs=0.9)}
    model = quick(net(), **data, trained=False, config=learned).model.train()
    before = fingerprint(model)
    result = optimize(model, method="dnal", config=replace(QUICK, fewest_steps=40), verbose=False)
    assert same(fingerprint(model), before)
    assert result.cost[1].macs <= 0.5 * result.cost[0].macs
    assert result.metric_name.startswith("agreement with the original")
    assert result.metrics["val"].before == 1.0
    assert 0.5 < result.metrics["val"].after <= 1.0
    assert result.notes[0].startswith("data-free: fine-tune on your data; agreement with the original")
    assert any("inputs of (2, 3, " in note for note in result.notes)
    assert any("matched to the model's batch norms" in note for note in result.notes)
    assert result.asked["data_free"]


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize(
    ("values", "settings", "clip"),
    [
        (False, {}, 1.0), (True, {}, 1.0), (True, {"gradient_clip": 5.0}, 5.0), (False, {"gradient_clip": None}, None),
    ],
)  # fmt: skip
def test_gradients_are_clipped_unless_that_is_turned_off(
    values: bool, settings: dict[str, float | None], clip: float | None, monkeypatch: pytest.MonkeyPatch
):
    """Without data, the variance that is missed is steep: models of images to images diverge at the usual rate."""
    seen = list[float | None]()
    real = trainer.fit

    def watched(model, task, recipe, **options):
        if options["stage"] == "fine-tune":
            seen.append(recipe.gradient_clip)
        return real(model, task, recipe, **options)

    monkeypatch.setattr(trainer, "fit", watched)
    model = nn.Sequential(net(), nn.Unflatten(1, (1, -1))) if values else net()
    optimize(model, config=replace(QUICK, **settings), verbose=False)
    assert seen == [clip]


@pytest.mark.usefixtures("little")
def test_a_model_that_answers_all_alike_is_told():
    model = net()
    with torch.no_grad():
        model[-1].bias[2] += 100
    result = optimize(model, config=replace(QUICK, finetune_epochs=0), verbose=False)
    assert any("puts 100% of them into one class, so agreement with it says little" in note for note in result.notes)


def test_a_plan_without_data_counts_the_making_of_inputs():
    plan = fxsurgery.plan(net(), config=QUICK)
    assert [stage.name for stage in plan.stages] == ["synthetic inputs", "architecture", "fine-tune"]


def test_a_model_that_is_not_captured_on_a_guess_is_told_of_the_guess():
    class Each(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)

        def forward(self, images: list[Tensor]) -> list[Tensor]:
            return [self.layer(image[None]) for image in images]

    with pytest.raises(CaptureError, match=r"The example inputs were inferred: inputs of \(2, 3, .*example_inputs="):
        optimize(Each(), verbose=False)


def test_a_model_with_weights_that_are_no_numbers_is_refused():
    model = net()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match=r"weights are not numbers \(NaN\): .*weight"):
        quick(model)


def test_settings_say_the_method():
    assert quick(net(), config=Prune(align=2, finetune_epochs=0)).asked["method"] == "prune"
    assert quick(net(), method="prune", config=Prune(align=2, finetune_epochs=0)).asked["method"] == "prune"
    with pytest.raises(SurgeryError, match=r"method='dnal' takes config=Dnal\(...\), not Prune"):
        quick(net(), method="dnal", config=Prune())


class Remembers(nn.Module):
    """What gates cannot stand for: hidden units that a recurrent layer feeds back to itself."""

    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(4, 32, batch_first=True)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(x)[0][:, -1])


def test_what_gates_cannot_reach_names_the_method_that_can():
    given = {"example_inputs": torch.randn(2, 5, 4), "train_data": None, "val_data": None}
    with pytest.raises(BudgetError, match=r"the least is .*; method='prune', which needs no gates, reaches [\d,]+; "):
        quick(Remembers(), **given)
    with pytest.raises(BudgetError) as told:
        quick(Remembers(), **given, budget=Budget(macs=1e-6))
    assert "prune" not in str(told.value)


def test_a_penalty_tells_how_many_gates_it_closed():
    result = quick(net(), config=replace(QUICK, penalty=1e-9))
    assert any(re.fullmatch(r"\d+ of 32 gates closed; a larger penalty closes more", note) for note in result.notes)
    assert not [note for note in result.notes if "within the budget" in note]


def test_a_metric_of_several_numbers_is_called_by_the_one_that_counts():
    def both(output: Tensor, target: Tensor) -> dict[str, Tensor]:
        right = output.argmax(1) == target
        return {"top1": right.float().mean(), "errors": (~right).float().mean()}

    result = quick(net(), metric=both)
    assert result.metric_name == "top1"
    assert list(result.figures) == ["errors (val)"]
    assert "top1 (val)" in result.summary()


def test_a_run_directory_holds_what_was_asked_the_best_and_the_result(tmp_path: Path):
    result = quick(net(), run_dir=tmp_path / "run")
    asked = json.loads((tmp_path / "run" / "config.json").read_text())
    assert asked == {"format": 1, **{k: v for k, v in json.loads(json.dumps(result.asked)).items() if k != "date"}}
    loaded = (fxsurgery.load(tmp_path / "run" / "result"), fxsurgery.load(tmp_path / "run"))
    for saved in (*loaded, quick(net(), run_dir=tmp_path / "run", resume=True)):
        assert all(
            torch.equal(a, b)
            for a, b in nonempty(zip(saved.model.parameters(), result.model.parameters(), strict=True))
        )
        assert saved.log == result.log
    assert (tmp_path / "run" / "best").is_dir()
    with pytest.raises(RunError, match="holds a run already"):
        quick(net(), run_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"(?s)other settings.*seed: 0 -> 1"):
        quick(net(), run_dir=tmp_path / "run", resume=True, seed=1)
    with pytest.raises(RunError, match=r"(?s)other settings.*the example inputs"):
        quick(net(), run_dir=tmp_path / "run", resume=True, example_inputs=(images(3)[0],))


class Turning(nn.Module):
    """Holds a tensor of a kind that no file format of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("turn", torch.tensor([1.0 + 0.5j]))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.turn.abs()


def test_a_model_that_cannot_be_written_is_told_first_and_costs_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    result = quick(Turning(), run_dir=folder, verbose=True)
    told = "the model cannot be written: the tensor `turn` cannot be saved because it is torch.complex64"
    shown = capsys.readouterr().err
    assert shown.index(told) < shown.index("architecture: ")
    assert told in result.notes[-1]
    assert result.cost[1].macs < result.cost[0].macs
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [
        "config.json", "journal.jsonl", "report.html", "stages",
    ]  # fmt: skip
    assert "torch.complex64" in (folder / "report.html").read_text()
    assert quick(Turning(), run_dir=folder, resume=True).notes == result.notes
    with pytest.raises(fxsurgery.SavingError, match="turn"):
        result.save(tmp_path / "mine")


def test_a_refused_run_does_not_keep_its_directory_from_the_next(tmp_path: Path):
    with pytest.raises(BudgetError):
        quick(net(), budget=Budget(macs=0.001), run_dir=tmp_path / "run")
    quick(net(), config=replace(QUICK, finetune_epochs=0), run_dir=tmp_path / "run")


def test_the_same_run_by_another_loss_is_refused(tmp_path: Path):
    quick(net(), run_dir=tmp_path / "run", loss=nn.CrossEntropyLoss())
    with pytest.raises(RunError, match=r"(?s)other settings.*loss.label_smoothing: 0.0 -> 0.1"):
        quick(net(), run_dir=tmp_path / "run", resume=True, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    quick(net(), run_dir=tmp_path / "run", resume=True, loss=nn.CrossEntropyLoss())


def test_precision_and_accumulation_reach_the_training(monkeypatch: pytest.MonkeyPatch):
    seen = list[Recipe]()
    real = trainer.fit

    def watched(model, task, recipe, **options):
        seen.append(recipe)
        return real(model, task, recipe, **options)

    monkeypatch.setattr(trainer, "fit", watched)
    result = quick(net(), mixed_precision="bf16", accumulate=2)
    assert {(recipe.mixed_precision, recipe.accumulate) for recipe in seen} == {("bf16", 2)}
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}


def separable(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images whose brightness is their class."""
    x, y = images(count)
    return 0.3 * x + y[:, None, None, None], y


def test_the_best_on_validation_is_the_result():
    """A rate that ruins a trained network when it is fine-tuned."""
    data = {"train_data": separable(), "val_data": separable(32), "budget": Budget(macs=0.9)}
    model = quick(net(), **data, trained=False, config=replace(QUICK, fewest_steps=60, weights_epochs=1)).model
    result = quick(model, **data, config=replace(QUICK, learning_rate=3.0, fewest_steps=5))
    ruined = [record["metric"] for record in result.history if record["stage"] == "fine-tune"][-1]
    pruned, kept = result.metrics["val, not fine-tuned"].after, result.metrics["val"].after
    assert ruined < pruned == kept
    assert any("further training made the validation accuracy worse" in note for note in result.notes)


def test_a_resumed_run_believes_what_was_measured_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a device whose every measurement differs, the end would differ if anything were measured again."""
    made = iter(range(2))
    monkeypatch.setattr(preparation, "Timer", lambda _, original, *__: Device(original, noise=0.1, seed=next(made)))
    limit = 0.6 * milliseconds(capture(net().eval(), images()[0][:2]))
    whole = quick(net(), budget=Budget(latency_ms=limit), run_dir=tmp_path / "run", verbose=True)
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert sum(b'"latency_ms of ' in line for line in lines) > 5
    journal.write_bytes(b"".join(lines[: len(lines) * 2 // 3]))
    again = quick(net(), budget=Budget(latency_ms=limit), run_dir=tmp_path / "run", resume=True)
    assert again.log == whole.log
    assert all(
        torch.equal(a, b) for a, b in nonempty(zip(again.model.parameters(), whole.model.parameters(), strict=True))
    )


class Forks(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return self.conv(x)
        return self.conv(-x)


class Tells(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> str:
        return f"{self.conv(x).shape}"


def nan_loss(output: Tensor, target: Tensor) -> Tensor:
    return output.sum() * torch.nan


def nan_data() -> tuple[Tensor, Tensor]:
    x, y = images()
    return x * torch.nan, y


BAD = {
    "nan loss": (net, {"loss": nan_loss}, TrainingError, "the loss is nan"),
    "unreachable": (net, {"budget": Budget(macs=0.001)}, BudgetError, "cannot be reached: the least is"),
    "nothing prunable": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {}, StructureError, "no channel can be removed",
    ),
    "empty loader": (net, {"train_data": (torch.zeros(0, 3, 8, 8), torch.zeros(0).long())}, DataError, "train_data"),
    "shape mismatch": (net, {"train_data": images(64, channels=5)}, DataError, "64|2, 5, 8, 8|5"),
    "wrong targets": (net, {"train_data": (images()[0], torch.zeros(64, 7, 2))}, DataError, "loss"),
    "absent device": (net, {"device": "cuda:7"}, DeviceError, "cuda:7"),
    "unknown device": (net, {"device": "toaster"}, DeviceError, "toaster"),
    "branch on a value": (Forks, {}, CaptureError, r"test_optimize\.py"),
    "output is no tensor": (Tells, {}, CaptureError, "output|tensor|traced"),
    "no training data": (
        net, {"train_data": None}, DataError, r"train_data is missing: call fxsurgery\.optimize\(model, ",
    ),
    "no validation data": (net, {"val_data": None}, DataError, "val_data is missing"),
    "nothing to train on": (
        net, {"train_data": None, "val_data": None, "trained": False}, DataError,
        r"needs data: call fxsurgery\.optimize\(model, config=Dnal\(\.\.\.\), train_data=\(images, labels\)",
    ),
    "taylor without data": (
        net, {"train_data": None, "val_data": None, "config": Prune(importance="taylor")}, DataError,
        r"With data: call fxsurgery\.optimize\(model, config=Prune\(\.\.\.\), train_data=",
    ),
    "a loss without data": (net, {"train_data": None, "val_data": None, "loss": nan_loss}, DataError, "loss without"),
    "nothing to resume": (net, {"resume": True}, SurgeryError, "pass run_dir="),
    "unknown method": (net, {"method": "magic"}, SurgeryError, "no method is named 'magic'; there are: dnal, prune"),
    "a seed that no generator takes": (net, {"seed": -1}, SurgeryError, "seed=-1: it must be at least 0"),
    "a tenth of a batch a step": (net, {"accumulate": 0}, SurgeryError, "accumulate=0: a step takes at least 1"),
    "a budget of nothing": (net, {"budget": 0.5}, BudgetError, r"such as budget=Budget\(macs=0\.5\)"),
    "an input that is none": (net, {"example_inputs": 3}, DataError, "example_inputs is 3; it must be a tensor"),
    "a task, and its loss again": (
        net, {"train_data": fxsurgery.Task.of(images(), images(32)), "val_data": None, "loss": nn.MSELoss()},
        DataError, "train_data is a Task, which holds these already: leave loss out",
    ),
    "a file for a run directory": (net, {"run_dir": __file__}, RunError, "is not a directory; choose another"),
    "everything frozen": (
        lambda: net().requires_grad_(requires_grad=False), {}, TrainingError, r"call model\.requires_grad_\(True\)",
    ),
    "unreachable latency": (net, {"budget": Budget(latency_ms=1e-6)}, BudgetError, "the least is .* ms"),
    "absent target": (net, {"budget": Budget(latency_ms=3.0), "target": "http://phone:8765"}, DeviceError, "phone"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error_and_changes_nothing(what: str):
    make, options, kind, message = BAD[what]
    model = make().train()
    before = fingerprint(copy.deepcopy(model))
    with pytest.raises(kind, match=message):
        quick(model, **options)
    assert same(fingerprint(model), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate=-1.0: it must be greater than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"finetune_epochs": -1}, "finetune_epochs=-1: it must be at least 0"),
        ({"architecture_epochs": -1}, "architecture_epochs=-1: it must be at least 0"),
        ({"most_steps": 0}, "most_steps=0: it must be at least 1"),
        ({"align": 0}, "align=0: it must be at least 1"),
        ({"optimizer": 3}, "optimizer must be a function of the parameters"),
        ({"penalty": -1.0}, "penalty=-1.0: it would reward open gates"),
    ],
)
def test_settings_without_meaning_are_refused_at_once(settings: dict, message: str):
    with pytest.raises(SurgeryError, match=message):
        Dnal(**settings)


def test_one_input_may_be_given_by_itself():
    result = quick(net(), example_inputs=images(3)[0])
    assert [tuple(x.shape) for x in result.example_inputs] == [(3, 3, 8, 8)]


def test_a_thing_that_is_no_module_is_refused():
    with pytest.raises(SurgeryError, match=r"model='resnet18': it must be a torch\.nn\.Module"):
        optimize("resnet18")  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [{}, {"macs": 0}, {"macs": -0.5}, {"params": float("nan")}])
def test_malformed_budgets_are_refused(limits: dict[str, float]):
    with pytest.raises(BudgetError):
        Budget(**limits)


def test_public_names_are_these():
    assert sorted(fxsurgery.__all__) == [
        "ArgumentError", "Budget", "BudgetError", "Callback", "CallbackError", "CaptureError", "Cost", "DataError",
        "DeviceError", "DivergedError",
        "Dnal",
        "Ectonas", "ExportError", "Inspection", "MissingExtraError", "PassCrashedError", "Plan", "Program", "Prune",
        "Result", "RunError", "SavingError", "SpecError", "Spend", "StructureError", "SurgeryError", "Task",
        "TrainingError", "VerifyError", "capture", "inspect", "load", "optimize", "plan",
    ]  # fmt: skip


class Bag(nn.Module):
    """Flat ids and offsets to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.wide, self.head = nn.EmbeddingBag(50, 16, mode="mean"), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, text, offsets):
        return self.head(self.wide(self.bag(text, offsets)).relu())


class LastStep(nn.Module):
    """(time, batch, 6) to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.wide, self.head = nn.GRU(6, 8), nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, steps):
        return self.head(self.wide(self.cell(steps)[1][-1]).relu())


def flat(rows):
    lengths = torch.tensor([0] + [len(t) for t, _ in rows[:-1]])
    return torch.cat([t for t, _ in rows]), lengths.cumsum(0), torch.tensor([y for _, y in rows])


def time_first(rows):
    return torch.stack([x for x, _ in rows], 1), torch.tensor([y for _, y in rows])


def ragged():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 50, (1 + i % 16,), generator=generator), i % 4) for i in range(44)]


def steps():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=generator), i % 4) for i in range(44)]


@pytest.mark.parametrize("stated", [{}, {"batch_dims": {"text": None, "offsets": 0}}, {"batch_dims": (None, 0)}])
def test_flat_ids_with_offsets_go_all_the_way(tmp_path, stated):
    loader = DataLoader(ragged(), batch_size=8, collate_fn=flat)
    result = optimize(
        Bag(), train_data=loader, val_data=loader, budget=Budget(macs=0.5), config=Prune(finetune_epochs=1),
        verbose=False, **stated,
    )  # fmt: skip
    with torch.no_grad():
        right = sum(int((result.model(t, o).argmax(1) == y).sum()) for t, o, y in loader)
    assert result.metrics["val"].after == pytest.approx(right / 44)
    assert result.cost[0].macs == 16 * 32 + 32 * 4
    assert any("dim 0 of `offsets`" in note for note in result.notes) is not bool(stated)
    assert result.export_onnx(tmp_path / "m.onnx").parity.kept_inputs == ("offsets",)
    result.save(tmp_path / "saved")
    assert fxsurgery.load(tmp_path / "saved").cost == result.cost


@pytest.mark.parametrize("size", [7, 8])
def test_time_first_data_go_all_the_way(tmp_path, size):
    loader = DataLoader(steps(), batch_size=size, collate_fn=time_first)
    result = optimize(
        LastStep(), train_data=loader, val_data=loader, budget=Budget(macs=0.97), config=Prune(finetune_epochs=1),
        verbose=False,
    )  # fmt: skip
    with torch.no_grad():
        right = sum(int((result.model(x).argmax(1) == y).sum()) for x, y in loader)
    assert result.metrics["val"].after == pytest.approx(right / 44)
    assert result.cost[0].macs == 8 * 3 * 8 * (6 + 8) + 8 * 64 + 64 * 4
    found = result.export_onnx(tmp_path / "m.onnx")
    assert found.parity.batch_sizes == ((2, 3) if size == 7 else (8, 9))


@pytest.mark.parametrize("whole", [False, True], ids=["by name", "one dict"])
def test_inputs_by_name_have_their_batch_in_any_order(whole):
    class Fields(LastStep):
        def __init__(self):
            super().__init__()
            self.rows = nn.Linear(5, 8)

        def forward(self, steps, rows):
            return self.head(self.wide(self.cell(steps)[1][-1] + self.rows(rows)).relu())

    class Whole(Fields):
        def forward(self, fields):
            return super().forward(fields["steps"], fields["rows"])

    def by_name(rows):
        x, y = time_first(rows)
        return {"labels": y, "rows": x[0, :, :5], "steps": x}

    loader = DataLoader(steps(), batch_size=8, collate_fn=by_name)
    result = optimize(
        (Whole if whole else Fields)(), train_data=loader, val_data=loader, budget=Budget(macs=0.97),
        config=Prune(finetune_epochs=1), verbose=False,
    )  # fmt: skip
    right = 0
    for batch in loader:
        fields = {name: batch[name] for name in ("steps", "rows")}
        output = result.model(fields) if whole else result.model(**fields)
        right += int((output.argmax(1) == batch["labels"]).sum())
    assert result.metrics["val"].after == pytest.approx(right / 44)
    assert sorted(map(str, result.program.batch_dims)) == ["0", "1"]


def test_a_task_says_where_the_batch_is_itself():
    loader = DataLoader(steps(), batch_size=8, collate_fn=time_first)
    task = Task.of(loader, loader, batch_dims=1)
    with pytest.raises(DataError, match="leave batch_dims out"):
        optimize(LastStep(), train_data=task, batch_dims=1)
    assert fxsurgery.plan(LastStep(), train_data=task, budget=Budget(macs=0.97), config=Prune()).reach


def test_entries_that_the_model_does_not_take_are_told_before_anything_is_done():
    rows = [{"input": torch.randn(12), "labels": i % 4, "text": f"row {i}", "id": i} for i in range(32)]
    loader = DataLoader(rows, batch_size=8)
    for call in (fxsurgery.plan, optimize):
        with pytest.raises(
            DataError, match=r"no parameter 'text', 'id'.*split=lambda batch: \(\{'input': batch\['input'\]\}"
        ):
            call(nn.Linear(12, 4), train_data=loader, val_data=loader, budget=Budget(macs=0.5), config=Prune())


def test_validation_data_without_an_end_are_refused_before_anything_is_trained():
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.randn(3, 8, 8), 0

    for call in (fxsurgery.plan, quick):
        with pytest.raises(DataError, match="val_data has no end after 1,000 batches"):
            call(net(), train_data=images(), val_data=Endless(), config=QUICK)
    task = Task.of(Endless(), Endless(), val_batches=2, batch_size=4)
    assert fxsurgery.plan(net(), train_data=task, config=QUICK).seconds > 0


def test_a_model_of_time_first_inputs_works_without_data():
    result = optimize(
        LastStep(), example_inputs=torch.randn(5, 2, 6), budget=Budget(macs=0.95), config=Prune(finetune_epochs=1),
        verbose=False,
    )  # fmt: skip
    assert result.program.batch_dims == (1,)
    with pytest.raises(DataError, match="offsets or lengths"):
        optimize(Bag(), example_inputs=(torch.arange(10), torch.tensor([0, 3, 4])), config=Prune(), verbose=False)


class WithTransform(nn.Module):
    """Its convolutions can shrink; a Fourier transform stays, whose MACs nobody counts."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(self.second(self.first(x).relu())).abs().mean((2, 3))


def test_a_budget_of_macs_says_which_macs_it_leaves_out():
    data = {"train_data": images(), "val_data": images(32), "method": "prune", "verbose": False}
    settings = {"align": 1, "finetune_epochs": 0.25}
    left_out = "the budget in MACs is checked without the MACs of _fft_r2c"
    plan = fxsurgery.plan(WithTransform(), budget=Budget(macs=0.5), **data, **settings)
    assert f"note: {left_out}" in str(plan)
    assert plan.notes.count(left_out) == 1
    result = optimize(WithTransform(), budget=Budget(macs=0.5), **data, **settings)
    assert "note: the MACs of _fft_r2c (at fft_rfft2) are not counted" in result.summary()
    assert left_out in result.notes
    with pytest.raises(BudgetError, match="The MACs of _fft_r2c are unknown and left out"):
        optimize(WithTransform(), budget=Budget(macs=0.001), **data, **settings)
    with pytest.raises(BudgetError, match=r"holds the rest\. Raise the limit, or lower align=$"):
        optimize(WithTransform(), budget=Budget(params=0.001), **data, **settings)


def test_a_model_without_parameters_is_refused_with_the_reason():
    with pytest.raises(StructureError, match="no channel can be removed: the model has no parameters"):
        quick(nn.Flatten(), config=None, method="prune")


def spoiled(path: str, value: float) -> nn.Module:
    model = net()
    tensor = model.state_dict()[path]
    tensor.view(-1)[0] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["weight", "running_var"])
@pytest.mark.parametrize("method", ["prune", "dnal", "ectonas"])
def test_tensors_that_are_not_finite_are_named_before_anything_trains(method: str, kind: str, value: float):
    path = next(name for name in net().state_dict() if name.endswith(kind))
    options = {"method": method, "train_data": images(), "val_data": images(32), "verbose": False}
    for call in (fxsurgery.optimize, fxsurgery.plan):
        with pytest.raises(TrainingError, match=rf"{re.escape(path)} hold NaN or infinite values; load an intact"):
            call(spoiled(path, value), **options)
    with pytest.raises(TrainingError, match=re.escape(path)):
        fxsurgery.optimize(spoiled(path, value), method="prune", verbose=False)


def test_a_metric_that_is_no_number_is_refused_before_anything_trains():
    seen = list[int]()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen.append(int(output.requires_grad))
        return nn.functional.cross_entropy(output, target)

    with pytest.raises(TrainingError, match=r"the validation blank of the original model is not a number \(NaN\)"):
        fxsurgery.optimize(
            net(), method="prune", train_data=images(), val_data=images(32), loss=loss, metric=blank, verbose=False
        )
    assert not any(nonempty(seen))


def blank(output: Tensor, target: Tensor) -> float:
    return float("nan")


def test_data_that_are_not_finite_are_named():
    x, y = images(32)
    x[3, 0, 0, 0] = torch.inf
    for data, said in (
        (
            {"train_data": images(), "val_data": (x, y)},
            r"^val_data: the loss of batch 0 is nan, since entry 0 has 0 NaN and 1",
        ),
        ({"train_data": (x, y), "val_data": images(32)}, r"train_data.* has 0 NaN and 1 infinite"),
    ):
        for method in ("prune", "dnal"):
            with pytest.raises((DataError, TrainingError), match=said):
                fxsurgery.optimize(net(), method=method, most_steps=2, fewest_steps=2, verbose=False, **data)


def test_a_loss_that_is_not_finite_is_noted():
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target) * (1.0 if output.requires_grad else torch.inf)

    result = fxsurgery.optimize(
        net(), method="prune", train_data=images(), val_data=images(32), loss=loss, metric=accuracy, most_steps=1,
        fewest_steps=0, verbose=False,
    )  # fmt: skip
    assert "the validation loss of original is not finite: inf" in result.notes


def test_a_model_that_cannot_be_trained_is_one_error():
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            y[:, :, 1:] *= 2.0
            return self.b(y).mean((2, 3))

    for method in ("prune", "dnal"):
        with pytest.raises(TrainingError, match="the model cannot be trained, its backward pass fails"):
            fxsurgery.optimize(
                Overwrites().eval(), method=method, train_data=images(), val_data=images(32), most_steps=2,
                fewest_steps=2, verbose=False, device="cpu",
            )  # fmt: skip


@pytest.mark.parametrize("method", ["prune", "dnal"])
def test_sparse_embeddings_shrink(method: str):
    ids = torch.randint(0, 50, (32, 5), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(
        nn.EmbeddingBag(50, 16, mode="sum", sparse=True), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    result = fxsurgery.optimize(
        model, method=method, train_data=(ids, torch.arange(32) % 4), val_data=(ids, torch.arange(32) % 4),
        most_steps=2, fewest_steps=2, verbose=False,
    )  # fmt: skip
    assert result.cost[1].macs < result.cost[0].macs
