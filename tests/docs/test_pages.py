"""Every block of README.md and docs/ runs, in order, and prints what the page says it prints."""

import contextlib
import re
from pathlib import Path

import pytest

import guides
from nonempty import nonempty

NAMES = [path.name for path in guides.PAGES]
SLOW = {"README.md", "quickstart.md", "ectonas.md", "data-free.md", "resume.md"}
"""Pages that train for some seconds more."""
WITH_PYTHON = [name for name in NAMES if any(b.language == "python" for b in guides.blocks_of(name))]
WITH_SHELL = [name for name in NAMES if any(b.language == "sh" for b in guides.blocks_of(name))]
OWN = {"passes.md"}
"""Pages whose blocks another test runs: those of passes.md run while the page is made."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in WITH_PYTHON if n not in OWN]
)
def test_the_blocks_of_a_page_run_and_print_what_it_says(name: str):
    guide = guides.run(name)
    assert len(guide.printed) == sum(block.language == "text" for block in guide.blocks)
    wrong = [
        (printed, shown.text)
        for printed, shown in guide.printed
        if guides.comparable(printed, varies=shown.varies) != guides.comparable(shown.text, varies=shown.varies)
    ]
    assert not wrong, f"{name} prints\n{wrong[0][0]}\nand shows\n{wrong[0][1]}"


def test_every_block_has_a_language_that_a_test_knows():
    for name in nonempty(NAMES):
        kinds = {block.language for block in guides.blocks_of(name)}
        assert kinds <= {"python", "text", "sh", "toml", "bibtex", ""}, name


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SHELL)
def test_the_commands_of_a_page_run(name: str, tmp_path: Path):
    with contextlib.chdir(tmp_path):
        guides.prepare(name, {"__name__": "guide", "PAGE": guides.page_of(name)})
        blocks = [block for block in guides.blocks_of(name) if block.language == "sh"]
        every = nonempty(c for block in blocks for c in guides.commands(block.text))
        ended = {c: guides.run_command(c) for c in every if c.startswith("fxsurgery")}
        assert {c: output for c, (code, output) in ended.items() if code} == {}


def test_commands_that_are_not_run_are_of_a_few_kinds():
    for name in nonempty(WITH_SHELL):
        blocks = [block for block in guides.blocks_of(name) if block.language == "sh"]
        for command in nonempty(c for block in blocks for c in guides.commands(block.text)):
            assert command.startswith(("fxsurgery ", *guides.ELSEWHERE)), f"{name}: {command}"


@pytest.mark.parametrize("name", NAMES)
def test_the_links_of_a_page_lead_somewhere(name: str):
    page = next(path for path in guides.PAGES if path.name == name)
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http://", "https://"))]
    assert [link for link in links if not leads_somewhere(page, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a relative link of a page leads to a file, and to one of its headings."""
    target, _, anchor = link.partition("#")
    path = page.parent / target if target else page
    return path.exists() and (not anchor or anchor in anchors(path))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
