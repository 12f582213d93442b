"""What importing the package and asking for help may load: a command line that answers at once."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fxsurgery
from nonempty import nonempty

HEAVY = (
    "torch._dynamo", "torch._inductor", "torch.onnx", "sklearn", "scipy", "sympy", "onnx", "onnxruntime", "onnxscript",
    "ray", "jinja2", "triton",
)  # fmt: skip
"""What only some calls need."""


def loaded(code: str) -> set[str]:
    """The modules of a fresh process that has run `code`, by their names and those of their packages."""
    text = f"import sys, json\n{code}\njson.dump(list(sys.modules), sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(fxsurgery.__file__).parents[1])},
    )  # fmt: skip
    return set(json.loads(done.stderr))


def helped(*arguments: str) -> str:
    return f"""
from fxsurgery.cli import app
try:
    app({[*arguments, "--help"]!r}, prog_name="fxsurgery")
except SystemExit as end:
    assert end.code == 0
"""


def test_import_loads_nothing_heavy_and_not_even_torch():
    modules = loaded("import fxsurgery")
    assert "fxsurgery" in modules
    assert not {"torch", "rich", "accelerate", *HEAVY} & modules


def test_help_loads_nothing_heavy_and_not_even_torch():
    modules = loaded(helped())
    assert {"fxsurgery.cli.app", "typer"} <= modules
    assert not {"torch", "accelerate", *HEAVY} & modules


def test_all_public_names_load_no_heavy_module():
    modules = loaded("from fxsurgery import *")
    assert {"fxsurgery.optimize", "torch"} <= modules
    assert not set(HEAVY) & modules


def test_the_help_of_the_largest_command_loads_no_heavy_module():
    modules = loaded(helped("optimize"))
    assert "fxsurgery.cli.optimize" in modules
    assert not set(HEAVY) & modules


def test_heavy_modules_are_seen_where_they_are_loaded():
    assert "jinja2" in loaded("from fxsurgery.report.page import _environment; _environment()")


def test_a_public_name_is_the_function_even_where_a_submodule_has_its_name():
    modules = loaded(
        "import fxsurgery.capture, fxsurgery.plan, fxsurgery.optimize\n"
        "assert callable(fxsurgery.capture) and callable(fxsurgery.plan) and callable(fxsurgery.optimize)\n"
        "assert fxsurgery.training.adamw(1e-3) and fxsurgery.errors.SurgeryError is fxsurgery.SurgeryError\n"
    )
    assert "fxsurgery.training" in modules


def test_a_name_that_is_not_there_is_an_error_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'fxsurgery' has no attribute 'optimizer'"):
        _ = fxsurgery.optimizer


def test_type_checkers_see_the_public_names_where_they_are_imported_from():
    tree = ast.parse(Path(fxsurgery.__file__).read_text(encoding="utf-8"))
    seen = {
        (node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    for name in nonempty(fxsurgery.__all__):
        assert (f"fxsurgery.{fxsurgery._HOME_OF[name]}", name) in seen
    assert set(fxsurgery._HOME_OF) == set(nonempty(fxsurgery.__all__))
    assert set(nonempty(fxsurgery.__all__)) <= set(dir(fxsurgery))
