"""An evolution from the command line, and what can be had out of its front."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

import fxsurgery
from nonempty import nonempty


@pytest.fixture
def told(evolved_here: Path) -> dict:
    return json.loads((evolved_here / "told.json").read_text())


def test_an_evolution_ends_with_what_it_spent_and_its_front(evolved_here: Path, told: dict):
    search, saved = told["search"], fxsurgery.load(evolved_here / "evolved")
    assert saved.search is not None
    assert search["spent"] <= search["allowed"] == 24
    assert search["networks"] == saved.search.trained > 5
    assert set(search) == {"networks", "spent", "allowed", "rejected", "duplicates", "lost_workers"}
    assert [m["params"] for m in told["pareto"]] == [m.cost.params for m in saved.pareto] != []
    assert [m["metric"] for m in told["pareto"]] == [m.metric for m in nonempty(saved.pareto)]
    assert "Pareto front" in saved.summary()
    assert "Lineage of the winner" in (evolved_here / "evolved.html").read_text()


def test_a_member_of_the_front_is_exported(evolved_here: Path, tmp_path: Path, give):
    saved, x = fxsurgery.load(evolved_here / "evolved"), torch.randn(3, 3, 8, 8)
    for number, member in nonempty(enumerate(saved.pareto[:2])):
        path = tmp_path / f"{number}.onnx"
        given = give("export", evolved_here / "evolved", path, "--member", number, "--exporter", "legacy")
        assert given.exit_code == 0, given.output
        session = onnxruntime.InferenceSession(path)
        [outputs] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(outputs), member.model(x), atol=1e-4)


def test_a_page_is_written_about_a_member(evolved_here: Path, told: dict, tmp_path: Path, give):
    given = give("report", evolved_here / "evolved", tmp_path / "it.html", "--member", 0)
    assert given.exit_code == 0, given.output
    assert f"{told['pareto'][0]['params']:,}" in (tmp_path / "it.html").read_text()


@pytest.mark.slow
def test_a_member_is_measured(evolved_here: Path, give):
    given = give("bench", evolved_here / "evolved", "--member", 0, "--rounds", 5, "--json")
    assert given.exit_code == 0, given.output
    assert [model["name"] for model in json.loads(given.stdout)["models"]] == ["original", "result"]


@pytest.mark.parametrize("command", ["export {} a.onnx", "bench {}", "report {} a.html"])
def test_a_member_that_is_not_there_is_told(evolved_here: Path, give, command: str):
    given = give(*command.format(evolved_here / "evolved").split(), "--member", 99)
    assert given.exit_code == 2
    assert "error: --member: there is no member 99: the result has numbers 0 to" in given.stderr


def test_a_result_without_a_front_says_so(optimized: Path, tmp_path: Path, give):
    given = give("report", optimized / "small", tmp_path / "it.html", "--member", 0)
    assert given.exit_code == 2
    assert "the result has no Pareto front" in given.stderr


def test_what_a_search_may_spend_is_passed_on_only_where_it_is_said(here: Path, give, seen: list[str], monkeypatch):
    given = list[dict]()

    def optimize(_: object, **said: object) -> None:
        given.append(said)
        raise fxsurgery.SurgeryError("enough")

    monkeypatch.setattr(fxsurgery, "optimize", optimize)
    flags = ["optimize", "sample_nets:Net", "--method", "ectonas", *seen[:4]]
    assert give(*flags).exit_code == 1
    assert give(*flags, "--spend=seconds=9", "--executor=ray", "--workers=3").exit_code == 1
    assert not {"spend", "executor", "workers"} & given[0].keys()
    assert (given[1]["spend"], given[1]["executor"], given[1]["workers"]) == (fxsurgery.Spend(seconds=9), "ray", 3)
