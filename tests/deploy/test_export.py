"""What an export writes, which exporter wrote it, and what it leaves alone."""

import copy
import hashlib
import logging
import warnings
from collections import UserDict
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deploy.samples import (
    Bag,
    Finder,
    FixedBatch,
    HardToTrace,
    IgnoresFirst,
    Reader,
    Residual,
    Sorted,
    TimeFirst,
    Tokens,
    TwoInputs,
    noise,
    reading,
    residual,
    seeded,
)
from fxsurgery.deploy import chain, export_onnx, exporters, opsets
from fxsurgery.errors import ExportError
from nonempty import nonempty
from zoo import REAL

IMAGES = (noise(2, 3, 8, 8),)


def run(path, *inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return [torch.from_numpy(o) for o in session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))]


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_file_takes_any_batch_size(tmp_path, exporter, batch):
    model = residual()
    found = export_onnx(model, (noise(batch, 3, 8, 8),), tmp_path / "m.onnx", exporter=exporter)
    for size in (1, 5):
        x = noise(size, 3, 8, 8, seed=size)
        torch.testing.assert_close(run(found.path, x)[0], model(x), rtol=1e-4, atol=1e-5)


def test_the_description_is_that_of_the_file(tmp_path):
    found = export_onnx(residual(), IMAGES, str(tmp_path / "m.onnx"))
    content = found.path.read_bytes()
    assert (found.bytes, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert found.exporter == "dynamo"
    assert found.fallback_reason is None
    assert found.opset == next(o.version for o in onnx.load(found.path).opset_import if not o.domain)
    assert found.parity.batch_sizes == (2, 3)
    assert found.parity.error < 1e-5
    assert found.parity.spread > 0.01
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_who_holds_the_file_before_keeps_it_whole(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    (tmp_path / "held").hardlink_to(path)
    export_onnx(residual(), IMAGES, path, exporter="legacy")
    assert (tmp_path / "held").read_bytes() == b"before"


@pytest.mark.parametrize("opset", [13, 17])
def test_an_old_opset_is_honored_by_the_older_exporter(tmp_path, opset):
    found = export_onnx(residual(), IMAGES, tmp_path / "m.onnx", opset=opset)
    assert (found.opset, found.exporter) == (opset, "legacy")
    assert next(o.version for o in onnx.load(found.path).opset_import if not o.domain) == opset


def test_a_new_opset_is_honored_by_the_current_exporter(tmp_path):
    found = export_onnx(residual(), IMAGES, tmp_path / "m.onnx", opset=19)
    assert (found.opset, found.exporter) == (19, "dynamo")


def test_an_exporter_that_gives_another_opset_is_refused(tmp_path, monkeypatch):
    real = exporters.WRITERS["legacy"]
    other = dict(exporters.WRITERS, dynamo=lambda m, p, r: real(m, p, replace(r, opset=15)))
    monkeypatch.setattr(exporters, "WRITERS", other)
    with pytest.raises(ExportError, match="opset 18 was requested, but the exporter wrote 15"):
        export_onnx(residual(), IMAGES, tmp_path / "m.onnx", opset=18, exporter="dynamo")
    found = export_onnx(residual(), IMAGES, tmp_path / "m.onnx", opset=18)
    assert (found.opset, found.exporter) == (18, "legacy")
    assert "wrote 15" in found.fallback_reason


def test_what_the_current_exporter_cannot_do_the_older_one_does_and_says_why(tmp_path):
    found = export_onnx(HardToTrace(), (noise(2, 3),), tmp_path / "m.onnx")
    assert found.exporter == "legacy"
    assert found.fallback_reason.startswith("dynamo: the exporter failed: ")
    with pytest.raises(ExportError, match="the exporter failed"):
        export_onnx(HardToTrace(), (noise(2, 3),), tmp_path / "m.onnx", exporter="dynamo")


def test_an_exporter_that_writes_wrong_numbers_is_passed_over(tmp_path, monkeypatch):
    real = exporters.WRITERS["dynamo"]

    def wrong(model, path, request):
        with torch.no_grad():
            next(iter(model.parameters())).mul_(2)
        real(model, path, request)
        with torch.no_grad():
            next(iter(model.parameters())).div_(2)

    monkeypatch.setattr(exporters, "WRITERS", dict(exporters.WRITERS, dynamo=wrong))
    found = export_onnx(residual(), IMAGES, tmp_path / "m.onnx")
    assert found.exporter == "legacy"
    assert "differ" in found.fallback_reason


def test_when_both_fail_both_are_quoted_and_the_file_before_stays(tmp_path, monkeypatch):
    def broken(what):
        def write(model, path, request):
            path.write_bytes(b"half a file")
            raise NotImplementedError(what)

        return write

    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")
    monkeypatch.setattr(exporters, "WRITERS", {"dynamo": broken("no op A"), "legacy": broken("no op B")})
    with pytest.raises(ExportError, match=r"dynamo: .*no op A \| legacy: .*no op B") as caught:
        export_onnx(residual(), IMAGES, path)
    assert caught.value.__cause__ is not None
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_and_the_random_state_are_left_alone(tmp_path, exporter, training):
    model = seeded(Residual).train(training)
    model.block.eval()
    flags = {name: m.training for name, m in model.named_modules()}
    weights, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    export_onnx(model, IMAGES, tmp_path / "m.onnx", exporter=exporter)
    assert {name: m.training for name, m in model.named_modules()} == flags
    assert all(torch.equal(model.state_dict()[k], v) for k, v in nonempty(weights.items()))
    assert all(p.requires_grad and p.grad is None for p in nonempty(model.parameters()))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_exporters_neither_print_nor_warn(tmp_path, capfd, caplog, exporter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(residual(), IMAGES, tmp_path / "m.onnx", exporter=exporter)
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_two_inputs_and_a_tuple_of_outputs(tmp_path, exporter):
    model, inputs = seeded(TwoInputs), (noise(3, 4), noise(3, 6))
    found = export_onnx(model, inputs, tmp_path / "m.onnx", exporter=exporter)
    assert len(found.parity.errors) == 2
    for got, wanted in nonempty(zip(run(found.path, *inputs), model(*inputs), strict=True)):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_an_input_that_is_not_used_does_not_shift_the_others(tmp_path, exporter):
    found = export_onnx(seeded(IgnoresFirst), (noise(3, 4), noise(3, 6)), tmp_path / "m.onnx", exporter=exporter)
    assert found.parity.error < 1e-5


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_integer_inputs(tmp_path, exporter):
    tokens = torch.arange(14).reshape(2, 7) % 11
    found = export_onnx(seeded(Tokens), (tokens,), tmp_path / "m.onnx", exporter=exporter)
    assert found.parity.error < 1e-5
    assert found.parity.spread > 0.01


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_inputs_by_name_and_a_dict_of_outputs(tmp_path, exporter):
    model = seeded(Reader)
    found = export_onnx(model, (), tmp_path / "m.onnx", example_kwargs=reading(), exporter=exporter)
    assert found.inputs == ("input_ids", "attention_mask")
    assert found.outputs == ("logits", "linear", "output_attention_mask")
    assert found.parity.error < 1e-5
    assert found.parity.spread > 0.01
    file = onnx.load(found.path)
    assert [i.name for i in file.graph.input] == nonempty(found.inputs)
    assert [o.name for o in file.graph.output] == nonempty(found.outputs)
    assert {"embedding.weight", "head.weight"} <= {i.name for i in file.graph.initializer}
    asked = reading(5, seed=1)
    logits, _, mask = run(found.path, asked["input_ids"], asked["attention_mask"])
    torch.testing.assert_close(logits, model(**asked)["logits"])
    assert torch.equal(mask, asked["attention_mask"])


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_nested_inputs_and_a_dataclass_of_outputs(tmp_path, exporter):
    model, features = seeded(Finder), {"levels": [noise(3, 6), noise(3, 6, seed=1)]}
    found = export_onnx(model, (features,), tmp_path / "m.onnx", exporter=exporter)
    assert found.inputs == ("levels_0", "levels_1")
    assert found.outputs == ("boxes", "scores_0", "scores_1")
    wanted = model(features)
    for got, output in zip(run(found.path, *features["levels"]), (wanted.boxes, *wanted.scores), strict=True):
        torch.testing.assert_close(got, output)


def test_the_output_object_of_a_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 11}
    model = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**sizes)).eval()
    asked = {k: v.long() for k, v in reading().items() if k != "scale"}
    found = export_onnx(model, (), tmp_path / "m.onnx", example_kwargs=asked)
    assert (found.exporter, found.inputs, found.outputs) == ("dynamo", tuple(asked), ("logits",))
    assert found.parity.error < 1e-4 < found.parity.spread


def test_equal_keys_are_told_apart_by_what_holds_them(tmp_path):
    class Pairs(nn.Module):
        def forward(self, left, right):
            return {"sum": {"x": left["x"] + right["x"]}, "x": left["x"] - right["x"]}

    pair = ({"x": noise(2, 3)}, {"x": noise(2, 3, seed=1)})
    found = export_onnx(Pairs(), pair, tmp_path / "m.onnx", exporter="legacy")
    assert found.inputs == ("left_x", "right_x")
    assert found.outputs == ("output_sum_x", "output_x")


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_an_output_given_twice_and_an_input_given_back(tmp_path, exporter):
    class Echo(nn.Module):
        def forward(self, x):
            y = x.exp()
            return y, y, x

    found = export_onnx(Echo(), (noise(2, 3),), tmp_path / "m.onnx", exporter=exporter)
    assert [tuple(o.shape) for o in run(found.path, noise(4, 3))] == [(4, 3)] * 3


def test_an_inner_value_makes_way_for_a_name_that_is_wanted(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(noise(3))

        def forward(self, x):
            return {"add": (x + self.x).exp()}

    for exporter in ("dynamo", "legacy"):
        found = export_onnx(Sum(), (noise(2, 3),), tmp_path / "m.onnx", exporter=exporter)
        assert (found.inputs, found.outputs) == (("x",), ("add",))
        assert found.parity.error < 1e-5


def test_a_container_that_pytorch_does_not_know_is_refused_as_input(tmp_path):
    class Batch(UserDict):
        pass

    with pytest.raises(ExportError, match="pass tuples, lists and dicts"):
        export_onnx(seeded(Finder), (Batch(levels=[noise(3, 6)]), noise(1)), tmp_path / "m.onnx")


def test_attention_keeps_its_fast_path_afterwards(tmp_path):
    export_onnx(seeded(Reader), (), tmp_path / "m.onnx", example_kwargs=reading(), exporter="legacy")
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_of_one_batch_size_is_exported_as_such_only_when_asked(tmp_path):
    inputs = (noise(2, 3, 4),)
    with pytest.raises(ExportError, match=r"does not run on inputs of shape \(3, 3, 4\): .*dynamic_batch=False"):
        export_onnx(FixedBatch(), inputs, tmp_path / "m.onnx")
    found = export_onnx(FixedBatch(), inputs, tmp_path / "m.onnx", dynamic_batch=False)
    assert found.parity.batch_sizes == (2,)


def test_the_check_can_be_switched_off(tmp_path):
    assert export_onnx(residual(), IMAGES, tmp_path / "m.onnx", exporter="legacy", check=False).parity is None


def test_places_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ExportError, match="it is a directory"):
        export_onnx(residual(), IMAGES, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file is a file, not a directory"):
        export_onnx(residual(), IMAGES, tmp_path / "file" / "deeper" / "m.onnx")


def test_missing_directories_are_created_and_removed_again_where_the_export_fails(tmp_path, monkeypatch):
    made = export_onnx(residual(), IMAGES, tmp_path / "a" / "b" / "m.onnx", exporter="legacy")
    assert made.path.is_file()

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setitem(exporters.WRITERS, "legacy", fails)
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="no such operator"):
        export_onnx(residual(), IMAGES, tmp_path / "there" / "c" / "d" / "m.onnx", exporter="legacy")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_directory_that_cannot_be_created_is_refused(tmp_path, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(chain.Path, "mkdir", denied)
    with pytest.raises(ExportError, match=r"cannot create the directory .*Permission denied; choose a path"):
        export_onnx(residual(), IMAGES, tmp_path / "a" / "m.onnx", exporter="legacy")


@pytest.mark.parametrize("exporter", ["auto", "dynamo", "legacy"])
@pytest.mark.parametrize("opset", [1, 6, 99, 9999])
def test_an_opset_out_of_range_is_one_error_and_nothing_on_the_terminal(tmp_path, capfd, exporter, opset):
    message = rf"^opset={opset} is not supported.*; pass one from \d+ to \d+, or"
    with pytest.raises(ExportError, match=message) as raised:
        export_onnx(residual(), IMAGES, tmp_path / "m.onnx", exporter=exporter, opset=opset)
    assert raised.value.__cause__ is raised.value.__context__ is None
    assert len(str(raised.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_newest_opset_is_one_that_onnx_runtime_loads(tmp_path):
    newest = opsets.newest_runnable()
    assert export_onnx(nn.ReLU(), IMAGES, tmp_path / "m.onnx", opset=newest).opset == newest
    assert 18 <= newest <= opsets.newest_known()
    assert not opsets._loads(b"no graph")


def test_without_onnx_runtime_an_opset_that_only_onnx_knows_may_be_written(tmp_path):
    known = opsets.newest_known()
    file = export_onnx(nn.ReLU(), IMAGES, tmp_path / "m.onnx", opset=known, check=False, exporter="dynamo")
    assert file.opset == known


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
    def denied(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(chain.tempfile, "TemporaryDirectory", denied)
    with pytest.raises(ExportError, match=r"cannot write .*Permission denied"):
        export_onnx(residual(), IMAGES, tmp_path / "m.onnx")


def test_unusable_requests_are_refused(tmp_path):
    with pytest.raises(ExportError, match="exporter='onnx': it must be 'auto', 'dynamo' or 'legacy'"):
        export_onnx(residual(), IMAGES, tmp_path / "m.onnx", exporter="onnx")
    with pytest.raises(ExportError, match="holds no tensor; pass at least one"):
        export_onnx(residual(), (), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"does not run on inputs of shape \(2, 4, 8, 8\)"):
        export_onnx(residual(), (noise(2, 4, 8, 8),), tmp_path / "m.onnx")
    uncopyable = nn.Linear(2, 2)
    uncopyable.file = (x for x in ())
    with pytest.raises(ExportError, match="cannot be copied"):
        export_onnx(uncopyable, (noise(2, 2),), tmp_path / "m.onnx")


def test_a_torchvision_model(tmp_path):
    pytest.importorskip("torchvision")
    model, x = REAL["mobilenet_v3_small"](), noise(2, 3, 64, 64)
    found = export_onnx(model, (x,), tmp_path / "m.onnx")
    assert found.exporter == "dynamo"
    assert found.parity.error < 1e-4 < found.parity.spread


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_type_that_onnx_runtime_cannot_run_is_named_with_what_to_do(tmp_path, dtype):
    model, x = nn.Conv2d(3, 4, 3).to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ExportError, match=rf"few operators in {name} on the CPU: export a copy in float32"):
        export_onnx(model, (x,), tmp_path / "m.onnx")


FLAT = (torch.arange(10), torch.tensor([0, 3, 4, 8]))
LENGTHS = (torch.arange(18).reshape(3, 6), torch.tensor([6, 4, 1]))


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
@pytest.mark.parametrize(
    ("model", "examples", "free", "kept", "others"),
    [
        (Bag, FLAT, {"text": [10], "offsets": ["batch"]}, ("offsets",),
         (torch.arange(10) + 7, torch.tensor([0, 2, 9]))),
        (TimeFirst, (noise(7, 3, 6),), {"steps": [7, "batch", 6]}, (), (noise(7, 5, 6, seed=1),)),
        (TimeFirst, (noise(4, 4, 6),), {"steps": [4, "batch", 6]}, (), (noise(4, 2, 6, seed=1),)),
        (Sorted, LENGTHS, {"ids": ["batch", 6], "lengths": ["batch"]}, ("lengths",),
         (torch.arange(12).reshape(2, 6), torch.tensor([5, 5]))),
    ],
    ids=["offsets", "time first", "square", "sorted lengths"],
)  # fmt: skip
def test_the_free_size_is_the_batch_and_values_in_order_stay(tmp_path, exporter, model, examples, free, kept, others):
    net = seeded(model)
    found = export_onnx(net, examples, tmp_path / "m.onnx", exporter=exporter)
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == free
    batch = examples[-1].shape[-2 if examples[-1].dim() == 3 else 0]
    assert (found.parity.batch_sizes, found.parity.kept_inputs) == ((batch, batch + 1), kept)
    with torch.no_grad():
        torch.testing.assert_close(run(found.path, *others)[0], net(*others), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offsets", [FLAT[1], torch.tensor([0, 0, 10, 10]), torch.tensor([0])])
def test_offsets_are_checked_on_the_values_given(tmp_path, offsets):
    found = export_onnx(seeded(Bag), (FLAT[0], offsets), tmp_path / "m.onnx", dynamic_batch=False)
    assert found.parity.kept_inputs == ("offsets",)
    assert found.parity.spread > 100 * found.parity.error


def test_a_batch_that_is_no_dim_is_exported_for_its_sizes_alone(tmp_path):
    net, examples = seeded(lambda: Bag(include_last_offset=True)), (FLAT[0], torch.tensor([0, 3, 4, 8, 10]))
    with pytest.raises(ExportError, match=r"no dim of the inputs is known to be a batch.*dynamic_batch=False"):
        export_onnx(net, examples, tmp_path / "m.onnx")
    found = export_onnx(net, examples, tmp_path / "m.onnx", dynamic_batch=False)
    assert found.parity.kept_inputs == ("offsets",)


def test_a_stated_batch_is_the_free_size(tmp_path):
    net = seeded(TimeFirst)
    found = export_onnx(net, (noise(7, 3, 6),), tmp_path / "m.onnx", batch_dims={"steps": 0})
    assert found.parity.batch_sizes == (7, 8)
    assert run(found.path, noise(9, 3, 6))[0].shape == (9, 3, 4)


def test_a_printed_file_says_which_sizes_are_free(tmp_path: Path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    free = export_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "free.onnx", exporter="legacy")
    assert free.shapes == (("batch", 3, 8, 8),)
    assert "(batch, 3, 8, 8)" in str(free)
    assert "sizes other than the batch are fixed at those of the example inputs" in str(free)
    assert repr(free) == f"<OnnxModel {tmp_path / 'free.onnx'}: opset {free.opset}, inputs {free.inputs[0]}>"
    fixed = export_onnx(
        model, torch.randn(2, 3, 8, 8), tmp_path / "fixed.onnx", exporter="legacy", dynamic_batch=False, check=False
    )
    assert fixed.shapes == ((2, 3, 8, 8),)
    assert "all sizes are fixed" in str(fixed)
    assert str(fixed).endswith("not checked")
