"""Programs against their original: exported alike, the original measured once. Times are made up, but in one test."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.samples import noise, seeded
from fxsurgery import capture
from fxsurgery.deploy import Measure, Measurement, Timer, compare_programs, kept_exports, resolve_target, timing
from fxsurgery.deploy.measurement import MeasuredModel, MeasurementBlock, ModelRuns
from fxsurgery.errors import ExportError, SurgeryError
from fxsurgery.program import Program
from fxsurgery.searchers.common.widths import space
from nonempty import nonempty

LOADS, ROUNDS = 5, 8


class Target:
    """A device that tells what it was asked for; its intervals narrow after the first `wide` reports.

    A model takes as many milliseconds as its file has bytes, and all of them drift alike. Where intervals are wide, the
    loadings of a model differ by up to 20 %.
    """

    name = "made-up"

    def __init__(self, wide: int = 0) -> None:
        self.asked = list[tuple[dict[str, str], int, Measure]]()
        self.wide = wide

    def plan(self, **options: Any) -> Measure:
        return resolve_target("local").plan(**options)

    def measure(self, models: Mapping[str, Any], inputs: Any, step: Measure) -> Measurement:
        exporters = {name: model.exporter for name, model in models.items()}
        self.asked.append((exporters, inputs.batch, step))
        spread, first = 0.2 if len(self.asked) <= self.wide else 0.0, next(iter(models))
        lucks = np.linspace(1 - spread, 1 + spread, LOADS)
        blocks = [
            MeasurementBlock(
                models=tuple(
                    ModelRuns(
                        load_ms=1.0, first_ms=1.0,
                        run_ms=(len(self.asked) * model.bytes * (1.0 if name == first else luck),) * ROUNDS,
                    )
                    for name, model in models.items()
                ),
                processor_ms=1.0,
            )
            for luck in lucks
        ]  # fmt: skip
        files = (MeasuredModel(name=name, bytes=m.bytes, sha256=m.sha256) for name, m in models.items())
        return Measurement(
            models=tuple(files), blocks=tuple(blocks), device="", provider="made-up", runtime="", threads=1,
            batch=inputs.batch, seed=0, date="",
        )  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class NoStatistics(Net):
    """The older exporter does not take its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.norm(x)))


class FourOnly(Net):
    """Takes batches of four alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).reshape(4, 2, 2).sum(1)


class Named(Net):
    """Called by name, with an input that it does not use; gives a dict."""

    def forward(self, image: Tensor, unused: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        x = self.features(image)
        return {"logits": self.head(x) * scale, "features": x}


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.features(x), 0.3, training=True))


def taken(kind: type[nn.Module], batch: int = 2) -> Program:
    if kind is Named:
        given = {"image": noise(batch, 3, 8, 8), "unused": noise(batch, 5), "scale": 2.0}
        return capture(seeded(kind), example_kwargs=given)
    return capture(seeded(kind), noise(batch, 3, 8, 8))


def small(program: Program) -> Program:
    return space(program, align=8).smallest_program()


def test_the_original_is_measured_once_and_each_program_exported_once_by_each_exporter(monkeypatch: pytest.MonkeyPatch):
    exported, real = list[str](), kept_exports.export_onnx

    def export(model, inputs, path, **options):
        exported.append(f"{path.stem} {options['exporter']}")
        return real(model, inputs, path, **options)

    monkeypatch.setattr(kept_exports, "export_onnx", export)
    monkeypatch.setattr(timing, "EXPORTS", kept_exports.KeptExports())
    target, start = Target(), taken(Net)
    timer = Timer(target, start, seed=3)
    assert timer.original_latency == timer.original_latency
    assert timer.original_latency[1] == 1
    ratio, low, high = timer.ratio(small(start), thorough=False)
    assert low <= ratio <= high < 1
    timer.ratio(small(start), thorough=False)
    timer.ratio(small(start), thorough=True)
    assert [exporters for exporters, *_ in target.asked] == [
        {"original": "dynamo"},
        {"original": "legacy", "candidate": "legacy"},
        {"original": "legacy", "candidate": "legacy"},
        {"original": "dynamo", "candidate": "dynamo"},
    ]
    assert exported == [
        "original dynamo", "original legacy", "candidate legacy", "candidate dynamo",
    ]  # fmt: skip
    assert {batch for _, batch, _ in target.asked} == {1}
    assert all(step.seed == 3 for *_, step in nonempty(target.asked))


def test_a_wide_interval_is_measured_once_more_and_longer():
    target, start = Target(wide=9), taken(Net)
    Timer(target, start).ratio(small(start), thorough=False)
    first, second = (step for *_, step in target.asked)
    assert second.rounds == 3 * first.rounds
    assert second.seconds == 3 * first.seconds


def test_what_the_older_exporter_does_not_take_goes_through_the_current_one_for_both(capfd: pytest.CaptureFixture[str]):
    target, start = Target(), taken(NoStatistics)
    Timer(target, start).ratio(small(start), thorough=False)
    assert [exporters for exporters, *_ in target.asked] == [{"original": "dynamo", "candidate": "dynamo"}]
    assert capfd.readouterr() == ("", "")


def test_a_model_for_one_batch_size_is_measured_at_it():
    target, start = Target(), taken(FourOnly, batch=4)
    timer = Timer(target, start)
    assert timer.original_latency[1] == 4
    timer.ratio(small(start), thorough=False)
    assert [batch for _, batch, _ in target.asked] == [4, 4]


def test_inputs_by_name_that_an_exporter_drops():
    start = taken(Named)
    local = resolve_target("local")
    pace = timing.Pace(rounds=5, seconds=0.5, exporters=("legacy",))
    timer = Timer(local, start, quick=pace, thorough=pace)
    _, batch = timer.original_latency
    assert batch == 1
    low_to_high = timer.ratio(small(start), thorough=False)
    assert low_to_high[1] <= low_to_high[0] <= low_to_high[2]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, 0]).real


def test_what_no_exporter_takes_is_told_with_each_ones_reason():
    start = capture(Branches().eval(), noise(2, 3, 8, 8))
    timer = Timer(Target(), start)
    with pytest.raises(ExportError, match=r"legacy: the exporter failed.*dynamo: the exporter failed"):
        timer.ratio(start, thorough=False)


@pytest.mark.parametrize("kind", [Noisy, FourOnly])
def test_a_comparison_of_what_draws_or_has_one_batch_size(kind, monkeypatch: pytest.MonkeyPatch):
    target, start = Target(), taken(kind, batch=4)
    monkeypatch.setattr(timing, "resolve_target", lambda _: target)
    report = compare_programs({"original": start, "result": start}, "local", {"rounds": 3})
    assert report["result"].ratio == 1.0
    assert report.batch == (4 if kind is FourOnly else 1)


def test_programs_that_are_compared_again_are_not_exported_again(monkeypatch: pytest.MonkeyPatch):
    exported, real = list[str](), kept_exports.export_onnx

    def export(model, inputs, path, **options):
        exported.append(path.stem)
        return real(model, inputs, path, **options)

    monkeypatch.setattr(kept_exports, "export_onnx", export)
    monkeypatch.setattr(timing, "EXPORTS", kept_exports.KeptExports())
    start = taken(Net)
    for _ in range(2):
        report = compare_programs({"original": start, "small": small(start)}, "local", {"rounds": 3, "seconds": 1.0})
    assert exported == ["original", "small"]
    assert report["small"].runs >= 3


def test_options_are_refused_before_anything_is_exported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_exports, "export_onnx", lambda *_, **__: pytest.fail("exported"))
    for options in ({"threads": 10**6}, {"rounds": 10**12}, {"foo": 3}):
        with pytest.raises(SurgeryError, match=f"{next(iter(options))}="):
            compare_programs({"a": taken(Net)}, "local", options)
