"""Every message of an error of ours says what happened, where, and what to do about it."""

import re

import pytest

from raised import PARTS, Site, Source, unguarded

VERBS = (
    "add", "apply", "ask", "begin", "build", "call", "capture", "check", "choose", "clean", "close", "continue", "correct", "create", "delete", 
    "drop", "encode", "export", "fix", "give", "hide", "import", "install", "keep", "leave", "limit", "load", "look", "lower",
    "make", "merge", "move", "name", "omit", "open", "pass", "pip install", "put", "quote", "raise", "rebuild", "remove",
    "rename", "repair", "replace", "report", "restore", "return", "rewrite", "run", "save", "score", "see", "send", "set", "shorten",
    "spend", "split", "start", "take", "train", "try", "unwrap", "update", "use", "wait", "widen", "wrap", "write",
)  # fmt: skip
VALID = (
    "there are:", "it must be", "it must", "it takes", "it has:", "it gives:", "such as", "e.g.", "must be", "must hold",
    "must give", "must make", "must turn", "needs", "wants", "this machine has", "did you mean",
)  # fmt: skip
_AFTER_FACT = r"(?:[;:.,?)>`'\"]\s+|\n\s*| or )"
_LEAD = r"(?:(?:to|for|if|where|with|in|on) [^,;:]+, )?(?:please |or |and |then )*"
REMEDY = re.compile(rf"{_AFTER_FACT}{_LEAD}(?:{'|'.join(VERBS)})\b|\b(?:{'|'.join(map(re.escape, VALID))})|\btakes [^;]*, not ", re.IGNORECASE)
"""After the fact comes a clause that opens with an imperative, or what is valid."""
WHERE = re.compile(r"<[^>]+>|`[^`]+`|'[^']+'|\b\w+=|--\w|\w\(|\b[a-z]+_\w+|\b[a-z]+\.[A-Za-z]")
"""A value, a quoted name, an argument, a flag or a call."""
PROPER = ("Accelerate", "ONNX", "Ray", "Python", "PyTorch", "CUDA", "MODEL", "Recipe", "Task", "Apple", "CPython")
START = re.compile(rf"[a-z<`'%\-(0-9]|(?:{'|'.join(PROPER)})\b|\w+[=(.]")
DIALECT = (
    "unless said", "so many", "is told", "by now", "goes on", "come to nothing", "came to nothing", "would meet itself",
    "nobody would want", "is no such", "say one of", "say at least", "say at most", "say '", "say <", "say 1", "say of what",
    "begin elsewhere", "the snapshot is none", "the like of", "has not:", "which has it all", "as well as it stands",
)  # fmt: skip

BUGS = {
    "VerifyError": "an invariant of ours that a pass broke",
    "DifferError": "a pass that broke its promise",
    "NotRunningError": "a pass whose result does not run",
    "PassCrashedError": "a bug of the pass, with its cause chained",
}
"""What the user can only report: no remedy is asked for."""

COMPLETED = {
    ("saving/", "RunError", "damaged: "): ("saving/folders.py", "damage"),
    ("saving/described.py", "SavingError", ""): ("saving/standalone/tree.py", "Tree._literally"),
    ("deploy/export.py", "ExportError", "the exporter failed"): ("deploy/export.py", "export_onnx"),
    ("deploy/export.py", "ExportError", "opset <"): ("deploy/export.py", "export_onnx"),
    ("saving/standalone/literals.py", "SavingError", ""): ("saving/standalone/tree.py", "Tree._literally"),
}
"""(module, error, start of its text) of parts of a message -> the function that adds where it is, and the remedy."""


def faults(site: Site) -> list[str]:
    """What is wrong with the message of a site."""
    return [f"{why}: {text!r}" for text in site.variants for why in _faults(site, text)]


def _faults(site: Site, text: str):
    relays = any(re.search(rf"<[^>]*\b{name}\b[^>]*>", text) for name in site.relayed)
    part = site.kind in PARTS or is_part(site, text)
    text = re.sub(r"<[^>]*>", "<...>", text)
    if not re.sub(r"<[^>]*>", "", text).strip(" :;,.|"):
        if not relays and site.kind not in PARTS:
            yield "no text that can be read from the source"
        return
    if text.rstrip().endswith((":", ";", ",")):
        yield "ends in the middle"
    if not START.match(text) and not (site.kind == "UntraceableError" or site.kind == "OffenceError"):
        yield "does not start in lower case or with an identifier"
    if "  " in text.replace("\n  ", "\n"):
        yield "holds two spaces in a row"
    if said := [words for words in DIALECT if words in text]:
        yield f"speaks dialect ({said[0]})"
    if not part and not WHERE.search(text):
        yield "does not say where"
    if not part and site.kind not in BUGS and not relays and not REMEDY.search(text):
        yield "does not say what to do"


def is_part(site: Site, text: str) -> bool:
    """Whether a text is a part that one other place completes."""
    return any(
        site.module.startswith(module) and site.kind == kind and text.startswith(start)
        for module, kind, start in COMPLETED
    )


@pytest.fixture(scope="module")
def package() -> Source:
    return Source.of_package()


def test_every_message_says_what_where_and_the_remedy(package):
    wrong = [f"{site}: {fault}" for site in package.sites for fault in faults(site)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_message_breaks_off_where_another_error_says_nothing(package):
    assert not list(unguarded(package))
