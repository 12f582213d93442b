"""Optional packages: what the core needs none of, and the message that names the extra."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fxsurgery.errors import MissingExtraError
from fxsurgery.extras import requires
from nonempty import nonempty

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

BLOCKER = """
import sys


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {blocked!r}:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = map(Without, sys.meta_path)
"""
OPTIONAL = (
    "sklearn", "scipy", "ray", "torchmetrics", "tensorboard", "wandb", "mlflow", "torchvision", "timm", "transformers",
    "torch_pruning", "mkdocs", "IPython", "matplotlib",
)  # fmt: skip

CORE = """
import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Dnal
from fxsurgery.errors import MissingExtraError

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 4
assert fxsurgery.inspect(fxsurgery.capture(model.eval(), x[:2]).graph_module, x[:2]).widths
data = {"train_data": (x, y), "val_data": (x, y), "verbose": False}
result = fxsurgery.optimize(model, budget=Budget(macs=0.5), config=Dnal(fewest_steps=2, most_steps=2), **data)
result.save("saved")
result.save_standalone("alone")
result.report("page.html")
assert fxsurgery.load("saved").cost[1].macs == result.cost[1].macs
print(result.export_onnx("small.onnx").parity.batch_sizes)
for call in (
    lambda: fxsurgery.optimize(model, method="ectonas", executor="ray", **data),
    lambda: __import__("fxsurgery.demo").demo.digits(),
):
    try:
        call()
    except MissingExtraError as error:
        print(error)
"""


def in_core_only(code: str, folder: Path) -> list[str]:
    """The lines that `code` prints in a process that can import none of the optional packages."""
    script = BLOCKER.format(blocked=set(OPTIONAL)) + code
    command = [sys.executable, "-W", "ignore", "-c", script]
    around = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=around, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_core_captures_optimizes_saves_and_exports_and_names_the_extra_of_anything_else(tmp_path: Path):
    parity, ray, demo = in_core_only(CORE, tmp_path)
    assert parity == "(2, 3)"
    assert ray.startswith("executor='ray' requires the package `ray`, which is not installed;")
    assert ray.endswith("pip install 'fxsurgery[ray]'")
    assert demo.endswith("requires the package `sklearn`, which is not installed; run: pip install 'fxsurgery[demo]'")


def test_an_installed_package_that_fails_to_import_is_not_taken_for_a_missing_one(tmp_path: Path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise ImportError('libfoo.so is not there')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"libfoo\.so"), requires("ray", "this"):
        import broken_package  # noqa: F401


def test_a_missing_module_of_our_own_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError, match=r"fxsurgery\.no_such_module"), requires("ray", "this"):
        import fxsurgery.no_such_module  # noqa: F401


def test_the_error_is_one_of_ours_and_keeps_its_cause():
    with pytest.raises(MissingExtraError) as caught, requires("ray", "executor='ray'"):
        import no_such_package  # noqa: F401
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_every_extra_that_the_code_names_is_declared():
    calls = [
        node
        for path in sorted((ROOT / "fxsurgery").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "requires"
    ]
    named = {ast.literal_eval(call.args[0]) for call in calls}
    assert {"ray", "demo"} <= named <= set(EXTRAS)


def test_each_extra_for_users_is_in_all_and_on_the_page_of_installation():
    [everything] = EXTRAS["all"]
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    users = set(EXTRAS) - {"all", "zoo", "rivals", "docs", "dev"}
    assert set(everything.partition("[")[2].rstrip("]").split(",")) == users
    assert all(f"`{extra}`" in page for extra in nonempty(EXTRAS))
