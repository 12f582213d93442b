"""What is exported once is not exported again, unless anything in it has changed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.deploy import kept_exports
from fxsurgery.deploy.kept_exports import KeptExports, digest_of
from fxsurgery.errors import ExportError
from fxsurgery.program import Program


def program(width: int = 4) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 2))
    return capture(net.eval(), torch.randn(2, 3, 4, 4))


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the exporter was asked for."""
    asked, real = list[dict](), kept_exports.export_onnx

    def export(model, inputs, path, **options):
        asked.append(options)
        return real(model, inputs, path, **options)

    monkeypatch.setattr(kept_exports, "export_onnx", export)
    return asked


def test_the_same_program_is_exported_once_and_its_file_written_each_time(tmp_path: Path, exported: list[dict]):
    kept = KeptExports()
    first = kept.export(program(), tmp_path / "a.onnx", exporter="legacy")
    second = kept.export(program(), tmp_path / "b.onnx", exporter="legacy")
    assert len(exported) == 1
    assert (first.path, second.path) == (tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert (second.sha256, second.parity) == (first.sha256, first.parity)


def test_what_auto_wrote_serves_who_asks_for_that_exporter(tmp_path: Path, exported: list[dict]):
    kept = KeptExports()
    made = kept.export(program(), tmp_path / "a.onnx", opset=17)
    assert made.exporter == "legacy"
    kept.export(program(), tmp_path / "b.onnx", opset=17, exporter="legacy")
    assert len(exported) == 1


def in_weights(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].add_(1)


def in_statistics(model: nn.Module) -> None:
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.data[0] += 1


def in_a_setting(model: nn.Module) -> None:
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eps = 0.1


@pytest.mark.parametrize("change", [in_weights, in_statistics, in_a_setting])
def test_a_program_that_was_changed_is_exported_again(change, tmp_path: Path, exported: list[dict]):
    kept, start = KeptExports(), program()
    before = kept.export(start, tmp_path / "a.onnx", exporter="legacy")
    change(start.graph_module)
    after = kept.export(start, tmp_path / "a.onnx", exporter="legacy")
    assert len(exported) == 2
    assert before.sha256 != after.sha256


def test_another_wish_is_another_export(tmp_path: Path, exported: list[dict]):
    kept, start = KeptExports(), program()
    for options in ({}, {"check": False}, {"dynamic_batch": False}, {"opset": 17}):
        kept.export(start, tmp_path / "a.onnx", exporter="legacy", **options)
    assert len(exported) == 4


def test_digests_do_not_depend_on_the_train_flag_and_differ_by_example_inputs():
    start = program()
    before = digest_of(start)
    start.graph_module.train()
    assert digest_of(start) == before
    start.example_inputs[0].add_(1)
    assert digest_of(start) != before


def test_a_kept_file_that_cannot_be_written_is_an_error_as_of_an_export(tmp_path: Path):
    kept = KeptExports()
    kept.export(program(), tmp_path / "a.onnx", exporter="legacy")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a file, not a directory"):
        kept.export(program(), tmp_path / "file" / "a.onnx", exporter="legacy")
    assert kept.export(program(), tmp_path / "none" / "a.onnx", exporter="legacy").path.is_file()
    with pytest.raises(ExportError, match="it is a directory"):
        kept.export(program(), tmp_path, exporter="legacy")


def test_the_least_recently_used_file_goes_first(tmp_path: Path, exported: list[dict]):
    sizes = [KeptExports().export(program(n), tmp_path / f"{n}.onnx", exporter="legacy").bytes for n in (4, 8, 12)]
    exported.clear()
    kept = KeptExports(most_bytes=sum(sizes) - 1)
    for n in (4, 8, 4, 12):  # 8 is the one that goes
        kept.export(program(n), tmp_path / "a.onnx", exporter="legacy")
    assert len(exported) == 3
    kept.export(program(4), tmp_path / "a.onnx", exporter="legacy")
    assert len(exported) == 3
    kept.export(program(8), tmp_path / "a.onnx", exporter="legacy")
    assert len(exported) == 4


def test_a_file_larger_than_all_that_is_kept_is_not_kept(tmp_path: Path, exported: list[dict]):
    kept = KeptExports(most_bytes=10)
    for _ in range(2):
        kept.export(program(), tmp_path / "a.onnx", exporter="legacy")
    assert len(exported) == 2
