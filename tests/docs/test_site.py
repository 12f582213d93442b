"""The site: which pages it has, and that nothing of it comes over the network."""

from importlib import import_module

import yaml

import api_pages
import fxsurgery
import guides
from nonempty import nonempty

CONFIG = yaml.safe_load((guides.ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(nav: object) -> list[str]:
    """The pages that a navigation names, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_every_page_is_in_the_navigation():
    written = {path.name for path in guides.PAGES if path.name != "README.md"}
    assert set(pages_of(CONFIG["nav"])) == written | set(nonempty(api_pages.pages())) | {
        "contributing.md",
        "changelog.md",
    }


def test_every_public_name_is_in_the_reference():
    text = "\n".join(api_pages.pages().values())
    for name in nonempty(set(fxsurgery.__all__) - {"Program"}):
        home = fxsurgery._HOME_OF[name]
        assert home == "errors" or f"::: fxsurgery.{home}.{name}\n" in text, name
    for package in nonempty(api_pages.PACKAGES):
        names = set(import_module(f"fxsurgery.{package}").__all__) - set(fxsurgery.__all__)
        assert all(f"::: fxsurgery.{package}.{name}\n" in text for name in nonempty(names)), package
    assert {"errors", "program"} <= {name for modules in api_pages.MODULES.values() for name in modules}


def test_nothing_is_loaded_from_elsewhere():
    assert CONFIG["theme"]["font"] is False
    plugins = {plugin if isinstance(plugin, str) else next(iter(plugin)) for plugin in CONFIG["plugins"]}
    assert plugins == {"search", "mkdocstrings"}
    assert not {"extra_javascript", "extra_css"} & set(CONFIG)
