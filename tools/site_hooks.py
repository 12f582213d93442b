"""Pages of the site that are not in docs/: API reference, examples, benchmark tables, contributing, changelog.

Pages link to files by their paths in the repository, `../examples/text.py`, so that the links work in a clone, too. On
the site each such file is a page of its own, and its links lead there.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import api_pages

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")

RENAMED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
"""Files of the repository's root -> their pages."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside docs/."""
    pages = api_pages.pages()
    for source, page in RENAMED.items():
        if page != "index.md":
            pages[page] = (ROOT / source).read_text(encoding="utf-8")
    for path in sorted((ROOT / "examples").glob("*.py")):
        pages[f"examples/{path.stem}.md"] = f"# {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    for path in results:
        pages[f"benchmarks/results/{path.name}"] = path.read_text(encoding="utf-8")
    links = "\n".join(f"- [{path.stem}]({path.name})" for path in results)
    pages["benchmarks/results/index.md"] = f"# Results of the benchmarks\n\n{links}\n"
    for uri, text in pages.items():
        file = File.generated(config, uri, content=text)
        if uri.startswith(("examples/", "benchmarks/")):
            file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Let links to files of the repository lead to their pages on the site."""
    folder = posixpath.dirname(page.file.src_uri)
    origin = "" if page.file.src_uri in RENAMED.values() and page.file.src_uri != "index.md" else f"docs/{folder}"

    def on_site(match: re.Match[str]) -> str:
        opening, target, anchor = match.groups(default="")
        if "://" in target or page.file.src_uri.startswith(("api/", "examples/", "benchmarks/")):
            return match[0]
        path = posixpath.normpath(posixpath.join(origin, target))
        uri = path.removeprefix("docs/") if path.startswith("docs/") else _page_of(path)
        return f"{opening}{posixpath.relpath(uri, folder or '.')}{anchor}"

    return LINK.sub(on_site, markdown)


def _page_of(path: str) -> str:
    """The page of a file outside docs/."""
    if path == "benchmarks/results":
        return "benchmarks/results/index.md"
    return RENAMED.get(path, re.sub(r"\.py$", ".md", path))
