"""What is published: the wheel, the source archive, the metadata, and the files that platforms read."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import guides
from nonempty import nonempty

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[zipfile.ZipFile, list[str]]:
    """The wheel, and the names in the source archive, built from a copy of the repository's tracked files."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for name in [n for n in listed.split("\0") if n and (ROOT / n).is_file()]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [wheel], [source] = out.glob("*.whl"), out.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        return zipfile.ZipFile(wheel), archive.getnames()


@pytest.mark.slow
def test_the_wheel_has_every_module_and_file_of_the_package_and_nothing_else(archives):
    wheel, _ = archives
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "fxsurgery").rglob("*") if path.is_file()}
    there = {name for name in there if "__pycache__" not in name}
    assert "fxsurgery/py.typed" in packed
    assert any(name.startswith("fxsurgery/report/templates/") for name in packed)
    assert packed == there


@pytest.mark.slow
def test_the_metadata_of_the_wheel_is_that_of_the_project(archives):
    wheel, _ = archives
    [name] = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode("utf-8"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# fxsurgery")
    assert set(nonempty(metadata.get_all("Provides-Extra"))) == set(PROJECT["optional-dependencies"])


@pytest.mark.slow
def test_the_source_archive_has_readme_and_license(archives):
    _, names = archives
    inside = {name.partition("/")[2] for name in names}
    assert {"README.md", "LICENSE", "pyproject.toml", "fxsurgery/py.typed"} <= inside


def test_the_core_has_no_package_that_only_an_extra_needs():
    core = {re.split(r"[<>=\[]", entry)[0] for entry in PROJECT["dependencies"]}
    assert {"torch", "onnx", "onnxruntime", "onnxscript", "typer"} <= core
    optional = {"scikit-learn", "ray", "torchmetrics", "tensorboard", "wandb", "mlflow", "matplotlib"}
    assert not optional & core


def test_every_pin_is_a_name_and_a_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in nonempty(x for x in lines if not x.startswith("#")))


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert all(author.get("name") or author.get("family-names") for author in nonempty(citation["authors"]))


def test_each_issue_template_is_a_form_with_a_required_field():
    forms = [p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"]
    assert {path.stem for path in forms} == {"bug", "feature", "question"}
    for path in nonempty(forms):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        assert any(field.get("validations", {}).get("required") for field in form["body"])
        assert len({field["id"] for field in form["body"]}) == len(form["body"])


def test_the_readme_is_short_and_its_table_of_results_is_that_of_the_benchmarks():
    readme = guides.page_of("README.md")
    assert len(readme.splitlines()) <= 150
    rows = nonempty(re.findall(r"^\| (?:torchvision|timm|transformers|awkward) \|.*$", readme, re.MULTILINE))
    assert len(rows) == 4
    assert all(row in guides.page_of("benchmarks.md") for row in rows)
    measured = (ROOT / "benchmarks" / "results" / "coverage.md").read_text(encoding="utf-8")
    for row in rows:
        name, models, proven = re.match(r"\| (\w+) \| (\d+) \| \*\*(\d+)\*\*", row).groups()
        assert re.search(rf"^\| {name} \| fxsurgery \| {models} \| {proven} \| {proven} \|", measured, re.MULTILINE)
