"""The front door: what it gives, and what it says when it cannot. The user's model never changes."""

import copy
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxsurgery
from fxsurgery import Budget, Dnal, SurgeryError, capture, optimize
from fxsurgery.analysis.cost import cost
from fxsurgery.errors import BudgetError, CaptureError, DataError, DeviceError, StructureError, TrainingError
from fxsurgery.passes import replay
from fxsurgery.surgery import relative_error

front_door = sys.modules["fxsurgery.optimize"]
"""The module, which the function of the same name hides."""

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
    assert set(result.model.state_dict()) == set(net().state_dict())
    assert not any(type(m).__module__.startswith("fxsurgery") for m in result.model.modules())


def test_log_rebuilds_the_architecture():
    result = quick(net())
    rebuilt = replay(result.log, result.original)
    assert rebuilt.text() == result.program.text()
    assert [p.shape for p in rebuilt.graph_module.parameters()] == [p.shape for p in result.model.parameters()]


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
        return replace(capture(*args, **options), notes=("`5` is kept whole: a test",))

    monkeypatch.setattr(front_door, "capture", noting)
    result = quick(net(), verbose=True)
    shown = capsys.readouterr().err
    assert 0 < shown.index("note: `5` is kept whole: a test") < shown.index("architecture: step")
    assert result.notes[0] == "`5` is kept whole: a test"
    assert "note: `5` is kept whole: a test" in result.summary()


def test_a_budget_in_milliseconds_is_met_as_measured(monkeypatch: pytest.MonkeyPatch):
    """On a made-up device, so that the test does not depend on how busy this one is."""

    def of(target: str, seed: int):
        return lambda program: cost(program).macs / 1e3

    monkeypatch.setattr(front_door, "_measure", of)
    whole = cost(capture(net().eval(), images()[0][:2])).macs / 1e3
    result = quick(net(), budget=Budget(latency_ms=0.5 * whole))
    assert 0.4 * whole < result.cost[1].macs / 1e3 <= 0.5 * whole
    assert any("ms allowed" in note for note in result.notes)


def test_latency_is_measured_on_the_target():
    assert front_door._measure("local", 0)(capture(net().eval(), images()[0][:2])) > 0


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
    "no data": (net, {"train_data": None}, DataError, "train_data is missing"),
    "unknown method": (net, {"method": "magic"}, SurgeryError, "no method is named 'magic'; there are: dnal"),
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


def test_a_thing_that_is_no_module_is_refused():
    with pytest.raises(SurgeryError, match=r"takes a torch\.nn\.Module, not a str"):
        optimize("resnet18")  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [{}, {"macs": 0}, {"macs": -0.5}, {"params": float("nan")}])
def test_malformed_budgets_are_refused(limits: dict[str, float]):
    with pytest.raises(BudgetError):
        Budget(**limits)


def test_public_names_are_these():
    assert sorted(fxsurgery.__all__) == [
        "Budget", "BudgetError", "CaptureError", "Cost", "DataError", "DeviceError", "Dnal", "ExportError",
        "Inspection", "PassCrashedError", "Program", "Result", "SpecError", "StructureError", "SurgeryError", "Task",
        "TrainingError", "VerifyError", "capture", "inspect", "optimize",
    ]  # fmt: skip
