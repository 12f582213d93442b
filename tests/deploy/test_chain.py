"""A deploy chain as a value: text, order, transforms checked with their own tolerance, plain measurements."""

import json
from dataclasses import asdict, replace

import onnx
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from deploy.samples import Residual, noise, residual, seeded
from fxsurgery.deploy import Chain, Check, Export, Measure, Measurement, ToFloat16, export_onnx, exporters, parse
from fxsurgery.deploy.latency_report import report_of
from fxsurgery.errors import ExportError, SpecError

IMAGES = (noise(2, 3, 8, 8),)
QUICK = Measure(rounds=6, warmup=1, seconds=5.0)


@pytest.mark.parametrize(
    "text",
    [
        "export",
        "export;check",
        "export(exporter='legacy',opset=17,dynamic_batch=False);check(rtol=0.01)",
        "export;to-float16;check;measure(rounds=50,threads=1,seed=3)",
        "export;check;to-float16;check;measure",
    ],
)
def test_the_text_of_a_chain_reads_back(text: str):
    chain = parse(text)
    assert str(chain) == text.replace(",threads=1", "")
    assert parse(str(chain)) == chain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("check", "out of order: begin with export"),
        ("export;export", "out of order"),
        ("export;measure;check", "out of order"),
        ("", "not of the form"),
        ("export;fold", "no step is named 'fold'; there are: check, export, measure, to-float16"),
        ("export(exporter='onnx')", "exporter='onnx': it must be 'auto', 'dynamo' or 'legacy'"),
        ("export(opset=0)", "opset=0"),
        ("export;check(rtol=-1)", "rtol=-1"),
        ("export;check(0.1)", "options in 'check.0.1.' are given by name"),
        ("export;check(atol=1)", "bad options in 'check.atol=1.'"),
    ],
)
def test_what_is_no_chain_is_refused(text: str, message: str):
    with pytest.raises((SpecError, ExportError), match=message):
        parse(text)


def test_float16_halves_the_weights_and_errs_within_its_tolerance_alone(tmp_path):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 10)))
    whole = export_onnx(model, IMAGES, tmp_path / "whole.onnx", exporter="legacy")
    half = export_onnx(model, IMAGES, tmp_path / "half.onnx", exporter="legacy", transforms=(ToFloat16(),))
    assert half.bytes < 0.55 * whole.bytes
    kinds = {tensor.data_type for tensor in onnx.load(half.path).graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert whole.parity.error < 1e-5 < half.parity.error < ToFloat16.tolerance < half.parity.spread
    assert half.parity.batch_sizes == (2, 3)


def test_the_check_of_a_transform_can_be_stricter_than_its_tolerance(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="differ"):
        Chain((Export("legacy"), ToFloat16(), Check(rtol=1e-6))).run(residual(), IMAGES, path)
    assert not path.exists()


def test_weights_beyond_float16_do_not_pass(tmp_path):
    model = residual()
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.Linear)).weight.mul_(1e6)
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="differ, relative to the largest value"):
        export_onnx(model, IMAGES, path, exporter="legacy", transforms=(ToFloat16(),))
    assert not path.exists()
    assert export_onnx(model, IMAGES, path, exporter="legacy").parity.error < 1e-4


def test_what_hides_behind_zero_weights_is_checked_after_the_transform_too(tmp_path):
    """A twin with random weights goes through all the steps: one that breaks a hidden branch is caught."""
    model = seeded(Residual)
    with torch.no_grad():
        model.head.weight.zero_()
    found = export_onnx(model, IMAGES, tmp_path / "m.onnx", exporter="legacy", transforms=(ToFloat16(),))
    assert found.parity.enlivened
    assert found.parity.error > 1e-5


def test_a_chain_measures_the_file_that_it_wrote(tmp_path):
    done = Chain((Export("legacy"), Check(), QUICK)).run(residual(), IMAGES, tmp_path / "m.onnx")
    assert done.file.sha256 == done.measurement.models[0].sha256
    assert done.file.bytes == (tmp_path / "m.onnx").stat().st_size
    assert (done.measurement.batch, done.measurement.threads, len(done.measurement.blocks)) == (1, 1, 5)
    assert sum(len(block.models[0].run_ms) for block in done.measurement.blocks) == 6 == done.latency["m"].runs
    assert Chain((Export("legacy"),)).run(residual(), IMAGES, tmp_path / "m.onnx").latency is None


def test_a_step_that_fails_after_the_export_goes_on_with_the_next_exporter(tmp_path, monkeypatch):
    def broken(path):
        del path
        raise ExportError("no such converter")

    taken = list[str]()
    real = dict(exporters.WRITERS)
    logged = {name: lambda m, p, r, name=name: (taken.append(name), real["legacy"](m, p, r)) for name in real}
    monkeypatch.setattr(exporters, "WRITERS", logged)
    monkeypatch.setattr(ToFloat16, "rewrite", lambda _, path: broken(path))
    with pytest.raises(ExportError, match=r"dynamo: no such converter \| legacy: no such converter"):
        Chain((Export(), ToFloat16())).run(residual(), IMAGES, tmp_path / "m.onnx")
    assert taken == ["dynamo", "legacy"]


def test_a_measurement_is_plain_json_and_gives_the_same_report_elsewhere(tmp_path):
    done = Chain((Export("legacy"), QUICK)).run(residual(), IMAGES, tmp_path / "m.onnx")
    sent = json.dumps(asdict(done.measurement))
    received = TypeAdapter(Measurement).validate_json(sent, strict=True)
    assert received == done.measurement
    assert report_of(received) == done.latency
    slower = [
        replace(b, models=(*b.models, replace(b.models[0], run_ms=tuple(2 * t for t in b.models[0].run_ms))))
        for b in received.blocks
    ]
    both = replace(
        received, blocks=tuple(slower), models=(received.models[0], replace(received.models[0], name="twice"))
    )
    assert report_of(both)["twice"].ratio == pytest.approx(2.0)
    assert report_of(both)["twice"].p50_ms == pytest.approx(2 * done.latency["m"].p50_ms)
