"""The notebook runs from its first cell to its last, and is committed without outputs."""

import ast
import contextlib
import io
import json
from pathlib import Path

import pytest
import torch

from nonempty import nonempty

NOTEBOOK = json.loads((Path(__file__).parents[2] / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, space: dict[str, object]) -> object:
    """Run a cell as Jupyter does: the value of a last line that is an expression is what the cell shows."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), space)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), space)


def test_no_outputs_are_committed():
    assert NOTEBOOK["nbformat"] == 4
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in nonempty(c for c in NOTEBOOK["cells"] if c["cell_type"] == "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_promises(tmp_path: Path):
    space, shown = dict[str, object](__name__="__main__"), list[object]()
    with (
        contextlib.chdir(tmp_path),
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        for source in nonempty(CODE):
            shown.append(run_cell(source, space))
    result = space["result"]
    before, after = result.cost
    assert after.macs <= 0.5 * before.macs
    assert result.metrics["val"].after > 0.9
    assert [type(value).__name__ for value in shown if value is not None] == ["Inspection", "Plan", "LatencyReport"]
    assert "accuracy (val)" in out.getvalue()
    assert {"small.onnx", "small.html", "small"} <= {path.name for path in tmp_path.iterdir()}
