"""Models written as code: it reads well, keeps the user's names, and gives the same outputs without fxsurgery."""

import ast
import contextlib
import io
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm

from fxsurgery.capture import capture
from fxsurgery.errors import RunError, SavingError
from fxsurgery.inputs import tensors_in
from fxsurgery.program import Program
from fxsurgery.saving.standalone import source, write_standalone
from fxsurgery.saving.standalone.wrapping import wrapped
from fxsurgery.saving.tensors import first_names, named_state, write_tensors
from nonempty import nonempty
from programs import program
from zoo import ZOO


def run(given: Program, folder: Path) -> nn.Module:
    """The model that the generated code makes, in this process, with its weights; its outputs are compared."""
    text = source(given)
    names = {"__name__": "model", "__file__": str(folder / "model.py")}
    exec(compile(text, "model.py", "exec"), names)
    state = named_state(given.graph_module)
    first = first_names(state)
    write_tensors(folder / "weights.safetensors", {name: t for name, t in state if first[name] == name})
    model = names["load"]()
    assert model.state_dict().keys() == given.graph_module.state_dict().keys()
    inputs = given.examples.clone()
    with torch.no_grad():
        output = model(*inputs.args, **inputs.kwargs)
    for (_, ours), theirs in nonempty(zip(tensors_in(output), given.run_examples(), strict=True)):
        assert torch.equal(ours, theirs)
    return model


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_computes_the_same_as_code(name: str, tmp_path: Path) -> None:
    run(program(name), tmp_path)


@pytest.mark.parametrize("name", ZOO)
def test_the_code_is_formatted_and_has_no_lint(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(source(program(name)))
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check", "--diff"], ["check", "--select", "E,F,I,W,B,UP"]):
        done = subprocess.run(
            [*ruff, *command, "--isolated", "--line-length", "100", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stdout


def test_a_residual_net_reads_as_a_person_would_write_it() -> None:
    text = source(program("Residual"))
    tree = ast.parse(text)
    [model] = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    assert model.name == "Residual"
    assert "self.project = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))" in text
    assert "def forward(self, x: Tensor) -> Tensor:" in text
    assert "x = F.relu(x + conv2)" in text
    assert "return self.head(x)" in text
    for word in ("fx", "getattr", "GraphModule", "fxsurgery", "operator"):
        assert word not in text


def test_the_proof_runs_in_a_process_without_fxsurgery(tmp_path: Path) -> None:
    write_standalone(program("TwoHeads"), tmp_path / "alone")
    assert sorted(p.name for p in (tmp_path / "alone").iterdir()) == [
        "model.py", "requirements.txt", "weights.safetensors"
    ]  # fmt: skip


def test_wrong_code_is_never_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = source(program("Plain")).replace("return self.head(", "return 2 * self.head(")
    monkeypatch.setattr("fxsurgery.saving.standalone.source", lambda _: wrong)
    with pytest.raises(SavingError, match="output 0 differs"):
        write_standalone(program("Plain"), tmp_path / "alone")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    given, folder = program("Plain"), tmp_path / "code"
    write_standalone(given, folder)
    (folder / "__pycache__").mkdir()
    write_standalone(given, folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"contains other files \(notes\.txt\)"):
        write_standalone(given, folder)
    assert (folder / "notes.txt").read_text() == "mine"
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "model.py").write_text("class Mine: ...")
    with pytest.raises(RunError, match=r"contains other files \(model\.py\)"):
        write_standalone(given, theirs)
    assert (theirs / "model.py").read_text() == "class Mine: ..."


class Tied(nn.Module):
    """A language model: integers in, tied and frozen weights in bfloat16, a buffer that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.rand(8), requires_grad=False)
        self.register_buffer("offset", torch.rand(8), persistent=False)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(ids) * self.scale + self.offset
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x), "mean": x.mean(1)}


def test_tied_frozen_and_low_precision_weights_stay_so(tmp_path: Path) -> None:
    model = run(capture(Tied().bfloat16().eval(), torch.tensor([[1, 2], [3, 4]])), tmp_path)
    assert model.head.weight is model.embed.weight
    assert model.head.weight.dtype == torch.bfloat16
    assert not model.scale.requires_grad
    assert "offset" not in model.state_dict()


class Structured(nn.Module):
    """Inputs by name and in structures, sizes, slices, an update in place, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, batch: dict[str, torch.Tensor], *, sizes: list[torch.Tensor]) -> tuple[object, ...]:
        x = F.relu(self.conv(batch["image"]))
        n, c, h, w = x.shape
        x = x.reshape(n, c, h * w)
        first, second = x.chunk(2, 1)
        y = torch.cat([first, -second], 1)
        y[:, 0] = 2.0
        y += 1
        return y[..., ::2] ** 2, {"boxes": [x.mean(-1) * sizes[0], (x - 1) / (x.abs() + 1)], "none": None}


def test_structured_calls_and_outputs_compute_the_same(tmp_path: Path) -> None:
    example = {"image": torch.randn(2, 3, 6, 6)}
    run(capture(Structured(), example, example_kwargs={"sizes": [torch.rand(2, 1)]}), tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.LSTM(5, 6, num_layers=2, batch_first=True, bidirectional=True),
        lambda: nn.GRU(5, 6, bias=False),
        lambda: nn.RNN(5, 6, nonlinearity="relu"),
        lambda: nn.MultiheadAttention(6, 2, batch_first=True),
    ],
)
def test_recurrent_and_attention_layers_compute_the_same(layer: Callable[[], nn.Module], tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x))[0]

    width = 6 if isinstance(Net().layer, nn.MultiheadAttention) else 5
    run(capture(Net().eval(), torch.randn(2, 3, width)), tmp_path)


def test_the_last_state_of_a_recurrent_layer_is_taken_out_of_its_pair(tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _, (h, c) = self.memory(x)
            return self.head(h[-1] + c[-1])

    run(capture(Last().eval(), torch.randn(2, 3, 5)), tmp_path)


def test_a_part_of_a_sequence_whose_path_is_a_number_gets_a_name(tmp_path: Path) -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.gelu(self.a(x))) + x

    given = capture(nn.Sequential(Part(), nn.Softmax(1)).eval(), torch.randn(2, 4))
    run(given, tmp_path)


def test_weight_norm_is_written_as_such(tmp_path: Path) -> None:
    model = nn.Sequential(weight_norm(nn.Conv1d(3, 4, 3)), nn.Flatten(), nn.Linear(24, 2)).eval()
    given = capture(model, torch.randn(2, 3, 8))
    assert 'weight_norm(nn.Conv1d(3, 4, 3), "weight", dim=0)' in source(given)
    run(given, tmp_path)


class Kept(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_code_of_the_user_is_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Kept())
    given = capture(model, torch.randn(2, 3), leaf_modules=(Kept,))
    with pytest.raises(SavingError, match=r"`1` \(.*Kept\) cannot be written as code.*original=your_model"):
        write_standalone(given, tmp_path / "alone")


def test_names_that_mean_something_in_the_code_are_given_another(tmp_path: Path) -> None:
    class Group(nn.Module):
        def forward(self, nn: torch.Tensor, len: torch.Tensor) -> torch.Tensor:
            return F.relu(nn + len)

    given = capture(Group(), torch.randn(2, 3), torch.randn(2, 3))
    assert "class ModelGroup(nn.Module)" in source(given)
    assert "def forward(self, nn_: Tensor, len_: Tensor)" in source(given)
    run(given, tmp_path)


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("x = f(a, b)", ["    x = f(a, b)"]),
        (f"x = f({'a' * 60}, {'b' * 60})", ["    x = f(", f"        {'a' * 60},", f"        {'b' * 60},", "    )"]),
        (f"x = f({'a' * 50}, {'b' * 40})", ["    x = f(", f"        {'a' * 50}, {'b' * 40}", "    )"]),
        (f"x = f('({'a' * 88}')", ["    x = f(", f"        '({'a' * 88}'", "    )"]),
    ],
)
def test_long_lines_are_broken_in_their_brackets(line: str, lines: list[str]) -> None:
    assert wrapped(line, 4) == lines


def test_a_sequence_in_a_sequence_is_called_as_a_part_of_it(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.only(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.single, self.body = Named(), nn.Sequential(Named(), nn.ReLU(), nn.Sequential(nn.Linear(4, 3)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(self.single(x))

    given = capture(Net(), torch.randn(2, 4))
    run(given, tmp_path)
    assert "x = self.single.only(x)" in source(given)
    assert "return self.body(x)" in source(given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_16", "convnext_tiny"])
def test_models_of_torchvision_stand_alone(name: str, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    size = 224 if name.startswith("vit") else 64
    given = capture(getattr(models, name)(weights=None, num_classes=10).eval(), torch.randn(2, 3, size, size))
    write_standalone(given, tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} >= {"model.py", "weights.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertModel", "GPT2LMHeadModel", "ViTModel", "T5EncoderModel", "LlamaForCausalLM"])
def test_models_of_transformers_stand_alone(name: str, tmp_path: Path) -> None:
    lists = pytest.importorskip("benchmarks.coverage.from_transformers")
    [sample] = [s for s in lists.samples() if s.name == name]
    model, inputs = sample.example(0)
    given = capture(model, inputs.args, example_kwargs=inputs.kwargs)
    write_standalone(given, tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} >= {"model.py", "weights.safetensors"}


def test_layers_that_are_called_as_a_whole_stand_in_one_block_without_headings() -> None:
    given = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 4))
    body = source(given).partition("def forward")[2].partition("def load")[0]
    assert body.strip().splitlines()[1:] == [
        "        x = self[0](input)",
        "        x = self[1](x)",
        "        return self[2](x)",
    ]


class Inner(nn.Module):
    """A child whose code calls torch, builtins and functions by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.fc(x))
        z = F.gelu(y).view(y.shape[0], 2, int(y.shape[1] // 2)).flatten(1)
        z[:, 0] = 0.5
        return z.sum(1, keepdim=True) + torch.max(z) + abs(z) + torch.arange(y.shape[1], device=x.device)


def calling(signature: str, body: str) -> nn.Module:
    """A model whose forward has these arguments, and gives `body` to its child."""
    names: dict[str, Callable[..., object]] = {}
    exec(f"def forward(model_itself, {signature}): return model_itself.child({body})", names)
    net = type("Net", (nn.Module,), {"forward": names["forward"]})()
    net.child = Inner()
    return net.eval()


def run_as_script(net: nn.Module, folder: Path, args: tuple = (), kwargs: dict | None = None) -> str:
    """The code of `net`, run as `python model.py` runs it, in this process; and its model gives the same outputs."""
    given = capture(net, args, example_kwargs=kwargs)
    run(given, folder)
    (folder / "model.py").write_text(source(given), encoding="utf-8")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        runpy.run_path(str(folder / "model.py"), run_name="__main__")
    return shown.getvalue()


NAMES = (
    "torch", "F", "nn", "operator", "math", "json", "Path", "Tensor", "Any",  # what the file imports
    "Net", "Group", "load", "read_tensors", "_TYPES", "model", "output", "named",  # and defines
    "print", "isinstance", "len", "getattr", "input", "slice", "float", "super", "object", "type",  # builtins
    "self", "child", "fc", "forward", "training", "args", "kwargs", "_", "__x", "__name__", "__file__", "class_",
    "größe", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_code_runs_whatever_forward_calls_its_argument(name: str, tmp_path: Path) -> None:
    assert run_as_script(calling(name, name), tmp_path, (torch.randn(2, 4),)) == "torch.Size([2, 4])\n"


@pytest.mark.parametrize("name", [n for n in NAMES if n not in {"self", "torch", "slice", "fx_pytree", "pytree"}])
def test_an_argument_by_name_keeps_its_name(name: str, tmp_path: Path) -> None:
    shown = run_as_script(calling(f"*, {name}", name), tmp_path, kwargs={name: torch.randn(2, 4)})
    assert shown == "torch.Size([2, 4])\n"


def test_several_arguments_with_names_of_the_code_are_told_apart(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    names = ["len", "len_", "len__", "print", "model", "output"]
    net = calling(f"{', '.join(names)}, *, Tensor, F, named", f"{' + 2 * '.join(names)} + Tensor - F * named")
    args = tuple(x + i for i in range(len(names)))
    run_as_script(net, tmp_path, args, {"Tensor": x, "F": x + 7, "named": x + 8})
    net = calling("*, len, len_, len__", "len + 2 * len_ + 3 * len__")
    run_as_script(net, tmp_path, kwargs={"len": x, "len_": x + 1, "len__": x + 2})


def test_parts_of_arguments_are_read_under_the_new_names(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    net = calling("torch, *, F", "torch['print'] + 2 * F[0]")
    run_as_script(net, tmp_path, ({"print": x},), {"F": [x + 1]})


def test_the_names_that_need_no_change_stay(tmp_path: Path) -> None:
    text = source(
        capture(
            calling("images, *, mask", "images + mask"), torch.randn(2, 4), example_kwargs={"mask": torch.randn(2, 4)}
        )
    )
    assert "def forward(self, images: Tensor, mask: Tensor) -> Tensor:" in text
    assert "model(images, mask=mask)" in text


@pytest.mark.filterwarnings("ignore:`torch.jit.script`", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_module_is_refused_by_its_path(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))).eval()
    program = capture(model, torch.randn(2, 4))
    with pytest.raises(SavingError, match=r"`1` .*ScriptModule\) cannot be written as code"):
        write_standalone(program, tmp_path / "code")
