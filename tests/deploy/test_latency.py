"""Statistics on made-up times, and what a report holds. No test looks at the clock."""

import json
import re
from typing import ClassVar

import numpy as np
import onnx
import pytest

from deploy.samples import FixedBatch, IgnoresFirst, Reader, Residual, TimeFirst, noise, reading, residual, seeded
from fxsurgery.deploy import compare_latency, export_onnx, interleave, resolve_target
from fxsurgery.deploy.latency_report import ratio_of
from fxsurgery.deploy.targets import compare_on
from fxsurgery.errors import ArgumentError, DeviceError, ExportError
from fxsurgery.inputs import Inputs

X = (noise(2, 3, 8, 8),)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return export_onnx(residual(), X, tmp_path_factory.mktemp("latency") / "small.onnx", exporter="legacy")


def drifting(loads=5, rounds=40, seed=0):
    """A machine that slows down by half meanwhile, and a model's times on it: noise, and the luck of each loading."""
    generator = np.random.default_rng(seed)
    drift = np.linspace(1.0, 1.5, loads * rounds).reshape(loads, rounds)

    def model(speed=1.0, luck=0.0):
        lucks = generator.normal(0, luck, (loads, 1))
        return [*(speed * drift * np.exp(lucks + generator.normal(0, 0.05, drift.shape)))]

    return model


def test_a_model_against_its_equal_has_one_in_the_interval():
    model = drifting()
    ratio, low, high = ratio_of(model(), model())
    assert 0.95 < low < 1 < high < 1.05
    assert low <= ratio <= high


def test_the_luck_of_a_loading_is_within_the_interval():
    found = []
    for seed in range(20):
        model = drifting(seed=seed)
        _, low, high = ratio_of(model(luck=0.02), model(luck=0.02), samples=200)
        found.append(low <= 1 <= high)
    assert sum(found) >= 16


def test_a_ratio_is_found_under_drift_and_outliers():
    model = drifting()
    slow = model(0.8)
    for times in slow:
        times[::10] *= 20
    ratio, low, high = ratio_of(slow, model())
    assert ratio == pytest.approx(0.8, rel=0.05)
    assert 0.7 < low < high < 0.9


def test_a_ratio_against_itself_is_exactly_one():
    times = [np.array([1.0, 2.0, 4.0]), np.array([3.0])]
    assert ratio_of(times, times) == (1.0, 1.0, 1.0)


def test_the_bootstrap_is_seeded():
    model = drifting()
    a, b = model(), model()
    assert ratio_of(a, b, 1) == ratio_of(a, b, 1)
    assert ratio_of(a, b, 1) != ratio_of(a, b, 2)


class FakeWatch:
    """A model of a given speed: its time, and the processor seconds per second."""

    load_ms = first_ms = 1.0
    bytes, sha256 = 10, "0"
    calls: ClassVar[list[str]] = []

    def __init__(self, model, inputs, threads, provider):
        self.name, self.share = model.stem, float(model.suffix[1:] or 100) / 100
        self.seconds = 0.002 if self.name == "slow" else 0.001

    def close(self):
        FakeWatch.calls.append("close")

    def run(self):
        FakeWatch.calls.append(self.name)
        return self.seconds, self.seconds * self.share


@pytest.fixture
def fake(monkeypatch, tmp_path):
    FakeWatch.calls = []
    monkeypatch.setattr(interleave, "Stopwatch", FakeWatch)
    monkeypatch.setattr(interleave, "available_cores", lambda: 2)

    def compare(names, **options):
        return compare_latency({n.partition(".")[0]: tmp_path / n for n in names}, X, **options)

    return compare


def test_models_take_turns_in_a_seeded_random_order(fake):
    fake(["fast", "slow"], rounds=30, warmup=2)
    first, FakeWatch.calls = FakeWatch.calls, []
    blocks = [first[i : i + 18] for i in range(0, len(first), 18)]
    assert [b[16:] for b in blocks] == [["close", "close"]] * 5
    rounds = [tuple(b[i : i + 2]) for b in blocks for i in range(4, 16, 2)]
    assert len(rounds) == 30
    assert set(rounds) == {("fast", "slow"), ("slow", "fast")}
    assert any(len(set(rounds[i : i + 6])) == 2 for i in range(0, 30, 6))
    fake(["fast", "slow"], rounds=30, warmup=2)
    assert FakeWatch.calls == first
    FakeWatch.calls = []
    fake(["fast", "slow"], rounds=30, warmup=2, seed=1)
    assert FakeWatch.calls != first


def test_fewer_rounds_than_loadings_are_all_made(fake):
    report = fake(["fast"], rounds=3)
    assert (report["fast"].runs, report.loads) == (3, 3)


def test_the_first_model_is_what_the_others_are_compared_to(fake):
    report = fake(["fast", "slow"], rounds=20)
    assert report["fast"].ratio == 1.0
    assert report["slow"].ratio == pytest.approx(2.0)
    assert report["slow"].p50_ms == pytest.approx(2.0)
    assert report["slow"].runs == 20


def test_a_run_that_shared_its_processor_is_flagged(fake):
    assert fake(["fast.100"], rounds=5).contended is False
    assert fake(["fast.90"], rounds=5).contended is True
    assert fake(["fast.190"], rounds=5, threads=2).contended is False
    assert fake(["fast.180"], rounds=5, threads=2).contended is True
    assert "busy" in str(fake(["fast.90"], rounds=5))


def test_time_that_is_up_ends_it_after_a_few_rounds(fake):
    report = fake(["fast"], rounds=10_000, warmup=10_000, seconds=1e-9)
    assert (report["fast"].runs, report.loads) == (interleave.FEWEST_ROUNDS, 1)
    assert len(FakeWatch.calls) == interleave.FEWEST_ROUNDS + 2


def test_a_report_says_what_was_measured_and_how(file):
    report = compare_latency({"a": file, "b": file.path}, X, rounds=6, warmup=1, seed=3)
    assert [m.name for m in report.models] == ["a", "b"]
    assert (report["b"].sha256, report["b"].bytes, report["b"].runs) == (file.sha256, file.bytes, 6)
    assert (report.batch, report.threads, report.loads, report.seed) == (2, 1, 5, 3)
    assert report.runtime.startswith("onnxruntime ")
    assert report.device
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", report.date)
    assert report["a"].min_ms <= report["a"].p50_ms <= report["a"].p90_ms <= report["a"].p99_ms
    assert json.loads(json.dumps(report.to_dict()))["models"][1]["name"] == "b"
    assert len(str(report).splitlines()) == 4
    with pytest.raises(KeyError, match="c"):
        report["c"]


def test_a_model_called_by_name_is_measured_as_it_is_called(tmp_path):
    file = export_onnx(seeded(Reader), (), tmp_path / "m.onnx", example_kwargs=reading(), exporter="legacy")
    models = {"described": file, "bare": file.path}
    report = compare_latency(models, (), example_kwargs=reading(3), rounds=3, warmup=0)
    assert (report.batch, report["bare"].runs) == (3, 3)


def test_the_report_has_the_batch_where_it_is_stated(tmp_path):
    file = export_onnx(seeded(TimeFirst), (noise(7, 3, 6),), tmp_path / "m.onnx", exporter="legacy")
    assert compare_latency({"m": file}, (noise(7, 2, 6),), batch_dims=1, rounds=3, warmup=0).batch == 2


def test_inputs_that_an_exporter_dropped_are_not_fed(tmp_path):
    inputs = (noise(3, 4), noise(3, 6))
    file = export_onnx(seeded(IgnoresFirst), inputs, tmp_path / "m.onnx", exporter="legacy")
    assert file.inputs == ("x", "y")
    assert compare_latency({"a": file}, inputs, rounds=1)["a"].runs == 1
    with pytest.raises(ExportError, match="was exported for 2 inputs; 1 were given"):
        compare_latency({"a": file}, inputs[1:], rounds=1)
    with pytest.raises(ExportError, match=r"the file takes 1 inputs \(y\); 2 were given \(input_0, input_1\)"):
        compare_latency({"a": file.path}, inputs, rounds=1)


def test_two_threads_can_be_asked_for(file, monkeypatch):
    monkeypatch.setattr(interleave, "available_cores", lambda: 2)
    assert compare_latency({"a": file}, X, rounds=2, warmup=0, threads=2).threads == 2


def test_a_file_that_changed_since_its_export_is_refused(tmp_path):
    a = export_onnx(residual(), X, tmp_path / "a.onnx", exporter="legacy")
    export_onnx(seeded(Residual, seed=1), X, a.path, exporter="legacy")
    with pytest.raises(ExportError, match="has changed since it was exported"):
        compare_latency({"a": a}, X)


def test_what_cannot_be_measured_is_refused(file, tmp_path):
    with pytest.raises(DeviceError, match="no model"):
        compare_latency({}, X)
    for bad in ({"rounds": 0}, {"threads": 0}, {"seconds": 0.0}, {"warmup": -1}):
        with pytest.raises(DeviceError, match=r"must be positive"):
            compare_latency({"a": file}, X, **bad)
    kinds = [{"threads": 1.5}, {"threads": "2"}, {"threads": True}, {"threads": None}, {"rounds": 3.0}, {"seed": "a"}]
    for bad in kinds:
        with pytest.raises(DeviceError, match=rf"{next(iter(bad))}=.* must be a whole number"):
            compare_latency({"a": file}, X, **bad)
    for bad in ({"seconds": "3"}, {"seconds": None}, {"seconds": float("nan")}):
        with pytest.raises(DeviceError, match=r"seconds=.* must be a finite number"):
            compare_latency({"a": file}, X, **bad)
    for bad in ({"seconds": -1}, {"threads": -1}, {"seed": -1}):
        with pytest.raises(DeviceError, match=r"must be positive, and warmup and seed not negative"):
            compare_latency({"a": file}, X, **bad)
    with pytest.raises(ExportError, match="there is no file"):
        compare_latency({"a": tmp_path / "none.onnx"}, X)
    with pytest.raises(ExportError, match="cannot run"):
        compare_latency({"a": file}, (noise(2, 5, 8, 8),))


def test_what_fails_in_the_runtime_is_raised_and_not_shown(tmp_path, capfd):
    """A file that says to take any batch size, and holds one."""
    path = export_onnx(FixedBatch(), (noise(2, 3, 4),), tmp_path / "m.onnx", dynamic_batch=False).path
    file = onnx.load(path)
    for value in (*file.graph.input, *file.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(file, path)
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ExportError, match="cannot run"):
        compare_latency({"m": path}, (noise(3, 3, 4),))
    with pytest.raises(ExportError, match="cannot load"):
        compare_latency({"m": tmp_path / "broken.onnx"}, (noise(3, 3, 4),))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"seconds": float("inf")}, "inf: it must be a finite number"),
        ({"rounds": 10**400}, r"<an integer of 1,329 bits>: it must be a whole number of at most 63 bits"),
        ({"threads": 10**30}, "0: it must be a whole number of at most 63 bits"),
    ],
)
def test_what_is_no_amount_is_refused(file, bad, why):
    with pytest.raises(DeviceError, match=rf"{next(iter(bad))}=.*{why}$"):
        compare_latency({"a": file}, X, **bad)


@pytest.mark.parametrize("bad", [{"rounds": 10**12}, {"warmup": 10**12}, {"seconds": 1e12}])
def test_a_measurement_that_would_not_end_is_refused(file, bad):
    with pytest.raises(DeviceError, match=rf"{next(iter(bad))}=.* is too large to measure; pass at most [\d,]+$"):
        compare_latency({"a": file}, X, **bad)


@pytest.mark.parametrize("threads", [3, 10**6])
def test_more_threads_than_cores_are_refused(file, threads, monkeypatch):
    monkeypatch.setattr(interleave, "available_cores", lambda: 2)
    message = r"threads=[\d,]+ is more than the 2 processor core\(s\) available to this process; pass threads=2"
    with pytest.raises(DeviceError, match=message):
        compare_latency({"a": file}, X, threads=threads)


def test_this_process_has_a_core():
    assert interleave.available_cores() >= 1


def test_an_unknown_option_is_refused_with_those_there_are(file):
    for bad in ("batch", "provider"):
        with pytest.raises(ArgumentError, match=f"has no option {bad}=; it takes: rounds, warmup, threads, seconds"):
            compare_on(resolve_target("local"), {"a": file}, Inputs(X), **{bad: 3})


def test_the_local_target_measures_as_asked(file):
    report = compare_on(resolve_target("local"), {"a": file}, Inputs(X), rounds=3, warmup=0)
    assert (report["a"].runs, report.provider) == (3, "CPUExecutionProvider")
