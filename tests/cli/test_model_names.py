"""What people try in place of MODEL: each is answered with what to write instead."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from fxsurgery.cli.model_names import remedy_for

SEEN = "name the class or function that builds the model, and the weights beside it: module:factory --weights "


@pytest.mark.parametrize("name", ["cnn.pt", "cnn.pth", "cnn.safetensors", "pytorch_model.bin", "last.ckpt"])
def test_weights_point_to_their_flag(here: Path, give, name: str):
    torch.save(nn.Linear(2, 2).state_dict(), name)
    for command in (["inspect", name], ["optimize", name], ["export", name, "a.onnx"]):
        result = give(*command)
        assert result.exit_code == 2
        assert f"error: MODEL: {name} holds weights, not the code of a model; {SEEN}{name}" in result.stderr
    Path(name).unlink()
    assert f"there is no file {name}; {SEEN}{name}" in give("inspect", name).stderr


def test_a_torchscript_archive_is_no_weights(here: Path):
    with zipfile.ZipFile("scripted.pt", "w") as archive:
        archive.writestr("scripted/code/__torch__.py", "")
    assert "is a TorchScript archive; name the Python class" in remedy_for("scripted.pt")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a.onnx", "a.onnx is an ONNX file, which cannot be changed; name the PyTorch model that it was exported from"),
        ("run.toml", "run.toml is a config file, not a model; pass it as --config run.toml to optimize, or name it as"),
        ("run.json", "pass it as --config run.json"),
        ("cfg.yaml", "config files are TOML or JSON; name it as module:factory or file.py:factory"),
        ("x.npz", "x.npz holds arrays, not a model; pass it as data, such as --example-inputs x.npz"),
        ("net.ipynb", "is a notebook, which cannot be imported; move the model's class to a .py file"),
        ("sample_nets.py", "is a whole file; name what is in it, such as sample_nets.py:Net, sample_nets.py:Odd, "),
        ("none.py", "there is no file none.py"),
        ("sample_nets", "sample_nets is a whole module; name what is in it, as sample_nets:NAME"),
        ("sample_nets.Net", "a colon stands before the name of the model; write sample_nets:Net"),
        ("timm/resnet50", "write timm:create_model --model-args model_name=resnet50"),
        ("google/tiny", "is the name of a model on a hub, which is not downloaded here; write a function that loads"),
        ("my-net", "'my-net' is neither a file nor a directory here; name it as module:factory"),
        (":Net", "is neither a file nor a directory here"),
    ],
)
def test_each_mistake_has_its_remedy(here: Path, give, text: str, remedy: str):
    result = give("inspect", text)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: MODEL: ")
    assert remedy in line


def test_functions_and_data_are_not_suggested_as_models(here: Path):
    Path("mixed.py").write_text(
        "from torch import nn\nfrom torch.utils.data import Dataset\n"
        "class MM(nn.Module): ...\nclass Data(Dataset): ...\n"
        "def loss(a, b): return a - b\ndef make(): return MM()\n"
    )
    assert remedy_for("mixed.py").endswith("such as mixed.py:MM, mixed.py:make")


def test_a_name_in_another_case_is_suggested(here: Path, give):
    assert "has no 'net'; did you mean 'Net'?" in give("inspect", "sample_nets:net").stderr


def test_a_model_of_torchvision_is_named_with_its_module(here: Path):
    pytest.importorskip("torchvision")
    assert remedy_for("resnet18") == "resnet18 is a model of torchvision; write torchvision.models:resnet18"


def test_a_model_of_timm_is_named_with_its_function(here: Path):
    pytest.importorskip("timm")
    wanted = "efficientnetv2_rw_t is a model of timm; write timm:create_model --model-args model_name="
    assert remedy_for("efficientnetv2_rw_t") == f"{wanted}efficientnetv2_rw_t"


DIRECTORIES = {
    "nothing of ours": (["notes.txt"], "it holds no saved result and no run; name a directory that --out or --run-dir"),
    "weights": (["cnn.pt"], f"it holds no saved result; {SEEN}it/cnn.pt"),
    "a package": (["__init__.py"], "it is a Python package; name a class or function in it, such as it:Net"),
    "standalone code": (
        ["model.py", "weights.safetensors"],
        "holds standalone code; name its function: it/model.py:load",
    ),
    "another library's model": (["config.json", "model.safetensors"], "holds a pretrained model of another library"),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_that_is_no_result_is_answered_by_what_it_holds(here: Path, give, name: str):
    files, remedy = DIRECTORIES[name]
    Path("it").mkdir()
    for file in files:
        Path("it", file).write_text(json.dumps({"model_type": "bert"}) if file == "config.json" else "")
    for command in (["inspect", "it"], ["report", "it", "a.html"], ["bench", "it"]):
        result = give(*command)
        assert result.exit_code == 1
        assert remedy in result.stderr


@pytest.mark.parametrize("command", ["report cnn.pt a.html", "bench cnn.pt", "report a.onnx a.html"])
def test_a_file_in_place_of_a_saved_result_is_told(here: Path, give, command: str):
    Path(command.split()[1]).touch()
    result = give(*command.split())
    assert result.exit_code == 1
    assert "is a file; name the directory of a saved result or of a run" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "sample_wide:Wide",
            "MODEL: sample_wide:Wide needs width, depth; pass --model-args width=VALUE --model-a",
        ),
        ("sample_wide:Wide --model-args width=3", "sample_wide:Wide needs depth; pass --model-args depth=VALUE"),
        ("sample_wide:Wide --model-args widht=3", "takes no argument 'widht'; did you mean 'width'?"),
        ("sample_wide:fixed --model-args zzz=3", "takes no argument 'zzz'; it takes: nothing"),
        (
            "sample_nets:Net --example-inputs sample_wide:data",
            "--example-inputs: sample_wide:data needs count; name a",
        ),
    ],
)
def test_a_factory_that_needs_arguments_says_which(here: Path, give, flags: str, message: str):
    Path("sample_wide.py").write_text(
        "from torch import nn\n\n\nclass Wide(nn.Linear):\n    def __init__(self, width, depth):\n"
        "        super().__init__(width, depth)\n\n\ndef fixed():\n    return nn.Linear(2, 2)\n\n\n"
        "def data(count):\n    return count\n"
    )
    result = give("inspect", *flags.split())
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
