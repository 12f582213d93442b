"""Programs written and read again: the same graph, tensors and outputs, or an error that says why not."""

import errno
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils import _pytree as pytree

from fxsurgery import files
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.errors import RunError, SavingError
from fxsurgery.passes import Elasticize, InsertGates, PruneChannels
from fxsurgery.program import Program
from fxsurgery.saving import load_program, save_program
from nonempty import nonempty
from programs import program
from zoo import ZOO


def same(left: Program, right: Program) -> None:
    """Raise unless the two agree in all that a program has."""
    assert left.text() == right.text()
    assert (left.log, left.notes, left.name) == (right.log, right.notes, right.name)
    ours, theirs = (dict(p.graph_module.named_parameters(remove_duplicate=False)) for p in (left, right))
    assert nonempty(left.graph_module.state_dict()) == list(right.graph_module.state_dict())
    assert {n: p.requires_grad for n, p in nonempty(ours.items())} == {n: p.requires_grad for n, p in theirs.items()}
    for (name, tensor), (_, other) in nonempty(
        zip(left.graph_module.state_dict().items(), right.graph_module.state_dict().items(), strict=True)
    ):
        assert tensor.dtype == other.dtype, name
        assert torch.equal(tensor, other), name
    for ours_out, theirs_out in nonempty(zip(left.run_examples(), right.run_examples(), strict=True)):
        assert torch.equal(ours_out, theirs_out)


def again(given: Program, folder: Path) -> Program:
    save_program(given, folder / "saved")
    return load_program(folder / "saved")


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    same(program(name), again(program(name), tmp_path))


def test_what_was_not_written_here_is_never_replaced(tmp_path: Path) -> None:
    given = program("Plain")
    save_program(given, tmp_path / "a")
    save_program(given, tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"contains other files \(notes\.txt\)"):
        save_program(given, tmp_path / "a")
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"file is a file, and a folder is written there; give"):
        save_program(given, tmp_path / "file")


def test_what_comes_back_trains_and_saves_again(tmp_path: Path) -> None:
    loaded = again(program("Residual"), tmp_path)
    model = loaded.trainable_copy().train()
    model(*loaded.example_inputs).square().sum().backward()
    assert all(p.grad is not None for p in nonempty(model.parameters()))
    same(loaded, again(loaded, tmp_path))


def test_gates_and_switches_of_a_search_come_back(tmp_path: Path) -> None:
    for made in (InsertGates()(program("Residual")).program, Elasticize()(program("Residual")).program):
        same(made, again(made, tmp_path))


def test_the_global_random_state_stays(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again(program("Plain"), tmp_path)
    assert torch.equal(before, torch.get_rng_state())


class Tied(nn.Module):
    """One tensor under two names, frozen, in bfloat16, with a buffer that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.rand(8), requires_grad=False)
        self.register_buffer("offset", torch.rand(8), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids) * self.scale + self.offset)


def test_tied_frozen_and_unsaved_tensors_keep_what_they_are(tmp_path: Path) -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    loaded = again(capture(Tied().bfloat16().eval(), ids), tmp_path)
    model = loaded.graph_module
    assert model.embed.weight is model.head.weight
    assert model.embed.weight.dtype == torch.bfloat16
    assert not model.scale.requires_grad
    assert "offset" in dict(model.named_buffers())
    assert "offset" not in model.state_dict()


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_parametrized_layers_come_back(norm: object, tmp_path: Path) -> None:
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    same(given := capture(model, torch.randn(2, 3, 6, 6)), loaded := again(given, tmp_path))
    assert any("parametrizations.weight" in name for name in loaded.graph_module.state_dict())


@dataclass
class Found:
    """An output that pytree knows."""

    boxes: torch.Tensor
    scores: torch.Tensor


pytree.register_dataclass(Found)


class Detector(nn.Module):
    """Inputs by name in structures, a dataclass and constants out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, batch: dict[str, torch.Tensor], *, sizes: list[torch.Tensor]) -> Found:
        x = F.relu(self.conv(batch["image"])).mean((2, 3))
        return Found(x * sizes[0], x + sizes[1])


def detector() -> Program:
    batch = {"image": torch.randn(2, 3, 6, 6)}
    return capture(Detector(), batch, example_kwargs={"sizes": [torch.rand(2, 1), torch.rand(2, 1)]})


def test_structured_inputs_and_outputs_keep_their_types(tmp_path: Path) -> None:
    given = detector()
    loaded = again(given, tmp_path)
    same(given, loaded)
    assert isinstance(loaded(*loaded.example_inputs, **loaded.example_kwargs), Found)


def test_an_output_type_that_is_not_known_any_more_comes_as_a_dict_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_program(detector(), tmp_path / "saved")
    monkeypatch.delitem(pytree.SUPPORTED_NODES, Found)
    loaded = load_program(tmp_path / "saved")
    assert set(loaded(*loaded.example_inputs, **loaded.example_kwargs)) == {"boxes", "scores"}
    assert any("Found becomes a plain dict" in note for note in loaded.notes)


class Whole(nn.Module):
    """Cannot be looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if float(x.detach().sum()) > -1e9 else x


class WithWhole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.whole = nn.Linear(3, 3), Whole()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole(self.first(x))


def test_a_module_kept_as_leaf_is_taken_from_the_model_with_the_saved_weights(tmp_path: Path) -> None:
    model, other = WithWhole().eval(), WithWhole().eval()
    save_program(given := capture(model, torch.randn(2, 3)), tmp_path / "saved")
    with pytest.raises(RunError, match=r"`whole` .*original=your_model"):
        load_program(tmp_path / "saved")
    loaded = load_program(tmp_path / "saved", original=other)
    same(given, loaded)
    assert loaded.graph_module.whole is not other.whole
    assert not torch.equal(loaded.graph_module.whole.weight, other.whole.weight)
    with pytest.raises(RunError, match="has no module `whole`"):
        load_program(tmp_path / "saved", original=nn.Linear(3, 3))


class Masked(nn.Conv2d):
    """A layer of torch's that is kept whole, with a mask as large as its weight."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, size, groups=groups)
        self.register_buffer("mask", torch.ones_like(self.weight).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Subclassed(nn.Linear):
    """Kept whole since it is asked for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def hooked() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3, groups=4)
    conv.register_forward_hook(lambda module, inputs, output: None)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


KEPT_LAYERS = {
    "hooked": (hooked, torch.randn(2, 3, 8, 8)),
    "masked": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Masked(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(),
        torch.randn(2, 3, 8, 8),
    ),
    "subclassed": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Subclassed(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval(),
        torch.randn(2, 5),
    ),
}


@pytest.mark.parametrize("name", KEPT_LAYERS)
def test_a_layer_kept_as_leaf_comes_back_as_it_was_cut(name: str, tmp_path: Path) -> None:
    make, x = KEPT_LAYERS[name]
    model = make()
    whole = capture(model, x, leaf_modules=(Subclassed,))
    drop = tuple((g.name, tuple(range(0, len(g.units), 2))) for g in structure(whole).groups if len(g.units) > 1)
    given = PruneChannels(drop)(whole).program
    kept = given.graph_module.get_submodule("2")
    assert kept.weight.shape != model[2].weight.shape
    save_program(given, tmp_path / "saved")
    assert '"opaque"' in (tmp_path / "saved" / "graph.json").read_text()
    before = repr(model)
    loaded = load_program(tmp_path / "saved", original=model)
    same(given, loaded)
    assert repr(loaded.graph_module.get_submodule("2")) == repr(kept)
    assert repr(model) == before
    model_again = loaded.trainable_copy().train()
    model_again(x).square().sum().backward()


def test_sizes_of_a_layer_kept_as_leaf_are_sizes_of_that_layer(tmp_path: Path) -> None:
    make, x = KEPT_LAYERS["masked"]
    model = make()
    save_program(capture(model, x), tmp_path / "saved")
    path = tmp_path / "saved" / "graph.json"
    text = path.read_text()
    for old, new in (
        ('"groups": 1', '"groups": -1'),
        ('"groups": 1', '"groups": "1"'),
        ('"groups": 1', '"forward": 1'),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(RunError, match="has invalid sizes"):
            load_program(tmp_path / "saved", original=model)


def test_stochastic_depth_of_a_library_is_known_by_what_it_does(tmp_path: Path) -> None:
    ops = pytest.importorskip("torchvision.ops")
    model = nn.Sequential(nn.Linear(4, 4), ops.StochasticDepth(0.3, "row")).eval()
    loaded = again(capture(model, torch.randn(8, 4)), tmp_path)
    torch.manual_seed(3)
    wanted = model.train()(x := torch.randn(64, 4))
    torch.manual_seed(3)
    x = torch.randn(64, 4)
    assert torch.equal(loaded.trainable_copy().train()(x), wanted)


def tampered(folder: Path, old: str, new: str) -> Path:
    """A saved program whose graph was changed."""
    save_program(program("Residual"), folder / "saved")
    path = folder / "saved" / "graph.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return folder / "saved"


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "torch.load", "torch.hub.load", "torch.serialization.load", "torch.utils.cpp_extension.load",
        "builtins.eval", "eval", "exec", "__import__", "torch.ops.load_library", "torch.ops.aten.from_file",
        "torch.ops.aten.save", "torch.from_file", "torch.compile", "operator.attrgetter", "operator.methodcaller",
        "subprocess.run",
        "torch.nn.functional.torch.load", "torch.classes.load_library", "torch.ops.aten.__class__",
    ],
)  # fmt: skip
def test_no_graph_can_call_arbitrary_python(name: str, tmp_path: Path) -> None:
    saved = tampered(tmp_path, '"torch.nn.functional.relu"', json.dumps(name))
    with pytest.raises(SavingError, match="may not call"):
        load_program(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"target": "x"', '"target": "x=__import__(\'os\').getcwd()"'),
        ('"name": "stem"', '"name": "stem; import os"'),
        ('"target": "flatten"', '"target": "__reduce__"'),
        ('"target": "flatten"', '"target": "flatten().backward"'),
        ('"target": "flatten"', '"target": "register_hook"'),
        ('"target": "stem"', '"target": "stem\'); import os; (\'"'),
        ('"target": "stem"', '"target": "no_such_module"'),
        ('"class": "BatchNorm2d"', '"class": "Transformer"'),
        ('"class": "BatchNorm2d"', '"class": "modules.BatchNorm2d"'),
        ('"num_features": 8', '"num_features": 9'),
        ('"kind": "torch"', '"kind": "pickle"'),
        ('"format": 1', '"format": 99'),
        ('"format": 1', '"fmt": 1'),
        ('"nodes": [', '"nodes": [ {},'),
        ('"path": "stem"', '"path": "../stem"'),
    ],
)
def test_a_changed_file_is_refused(old: str, new: str, tmp_path: Path) -> None:
    saved = tampered(tmp_path, old, new)
    with pytest.raises((RunError, SavingError)):
        load_program(saved)


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors", "examples.safetensors"])
def test_a_file_cut_short_or_missing_is_named(name: str, tmp_path: Path) -> None:
    save_program(program("Plain"), tmp_path / "saved")
    path = tmp_path / "saved" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunError, match=name):
        load_program(tmp_path / "saved")
    path.unlink()
    with pytest.raises(RunError, match=name):
        load_program(tmp_path / "saved")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="other files"):
        save_program(program("Plain"), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_program(program("Plain"), tmp_path / "saved")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match="free some space"):
        save_program(program("Residual"), tmp_path / "saved")
    monkeypatch.undo()
    same(program("Plain"), load_program(tmp_path / "saved"))
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_no_pickle_and_no_import_when_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_program(program("Plain"), tmp_path / "saved")
    monkeypatch.setattr(torch, "load", None)
    before = set(sys.modules)
    load_program(tmp_path / "saved")
    assert set(sys.modules) == before


class Unwritable(nn.Module):
    """A complex constant, which the format does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.table.real


def test_a_tensor_of_a_kind_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SavingError, match=r"table.*complex64"):
        save_program(capture(Unwritable(), torch.randn(2, 3)), tmp_path / "saved")


def test_a_name_that_could_not_be_read_again_is_told_when_it_is_written(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("it's", nn.Linear(4, 2))
    with pytest.raises(SavingError, match=r"cannot be read again: .*it's.* is not a valid path"):
        save_program(capture(model, torch.randn(2, 4)), tmp_path / "program")
    assert not (tmp_path / "program").exists()


@pytest.mark.parametrize(
    ("args", "dims", "samples"),
    [
        ((torch.arange(10), torch.tensor([0, 3, 4, 8])), (None, 0), None),
        ((torch.arange(10), torch.tensor([0, 3, 4, 8, 10])), (None, None), 4),
    ],
)
def test_where_the_batch_is_is_kept(tmp_path, args, dims, samples):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(20, 3, include_last_offset=samples is not None)

        def forward(self, text, offsets):
            return self.bag(text, offsets)

    save_program(capture(Bag(), args), tmp_path / "saved")
    again = load_program(tmp_path / "saved")
    assert (again.batch_dims, again.samples, again.examples.batch) == (dims, samples, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_dims", [0]), ("batch_dims", [0, 7]), ("batch_dims", [0, 0]), ("batch_dims", [-1, 0]), ("batch_dims", "ab"),
     ("batch_dims", [{}, 0]), ("samples", 0), ("samples", [])],
)  # fmt: skip
def test_a_batch_that_does_not_fit_the_examples_is_damage(tmp_path, name, value):
    save_program(capture(nn.EmbeddingBag(20, 3), torch.arange(10), torch.tensor([0, 3, 4, 8])), tmp_path / "saved")
    path = tmp_path / "saved" / "graph.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(RunError, match=r"batch_dims|samples|damaged"):
        load_program(tmp_path / "saved")


def test_a_program_saved_before_there_were_batch_dims_is_read(tmp_path):
    save_program(capture(nn.Linear(3, 2), torch.randn(4, 3)), tmp_path / "saved")
    path = tmp_path / "saved" / "graph.json"
    plain = json.loads(path.read_text())
    del plain["batch_dims"], plain["samples"], plain["sha256"]
    path.write_text(json.dumps(plain))
    assert load_program(tmp_path / "saved").examples.batch == 4
