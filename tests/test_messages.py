"""Every message of an error of ours says what happened, where, and what to do about it."""

import itertools
import re
from collections.abc import Iterator

import pytest

from quoted import unguarded
from raised import PARTS, Site, Source

VERBS = (
    "add", "apply", "ask", "begin", "build", "call", "capture", "check", "choose", "clean", "close", "compute",
    "continue", "copy", "correct", "create", "declare", "delete", "draw", "drop", "encode", "export", "fix", "free",
    "give",
    "hide",
    "import", "install", "keep", "leave", "limit", "load", "look", "lower", "make", "merge", "move", "name", "omit",
    "open", "pass", "pip install", "put", "quote", "raise", "rebuild", "remove", "rename", "repair", "replace",
    "report", "restore", "return", "rewrite", "run", "save", "score", "see", "seed", "send", "set", "shorten",
    "spend", "split", "start", "take", "train", "try", "unwrap", "update", "use", "wait", "widen", "wrap", "write",
)  # fmt: skip
VALID = (
    "there are:", "it takes", "it has:", "it gives:", "such as", "e.g.", "must be",
    "must hold", "must give", "must make", "must turn", "needs", "wants", "this machine has", "did you mean",
)  # fmt: skip
_AFTER_FACT = r"(?:[;:.,?]\s+|\n\s*| or )"
_LEAD = r"(?:(?:to|for|if|where|with|in|on) [^,;:]+, )?(?:please |or |and |then )*"
REMEDY = re.compile(
    rf"{_AFTER_FACT}{_LEAD}(?:{'|'.join(VERBS)})\b|\b(?:{'|'.join(map(re.escape, VALID))})|\btakes [^;]*, not ",
    re.IGNORECASE,
)
"""After the fact comes a clause that opens with an imperative, or what is valid."""
WHERE = re.compile(r"<[^>]+>|`[^`]+`|'[^']+'|\b\w+=|--\w|\w\(|\b[a-z]+_\w+|\b[a-z]+\.[A-Za-z]")
"""A value, a quoted name, an argument, a flag or a call."""
PROPER = "Accelerate|ONNX|Ray|PyTorch|Python|Taylor|CUDA|MODEL|Recipe|Task|Apple"
START = re.compile(rf"[a-z<`'%\-(0-9]|(?:{PROPER})\b|\w+[=(.]")
DIALECT = (
    "unless said", "so many", "is told", "by now", "goes on", "come to nothing", "came to nothing",
    "would meet itself", "nobody would want", "is no such", "say one of", "say at least", "say at most", "say '",
    "say <", "say 1", "say of what", "begin elsewhere", "the snapshot is none", "the like of", "has not:",
    "which has it all", "as well as it stands",
)  # fmt: skip

BUGS = {
    "VerifyError": "an invariant of ours that a pass broke",
    "DifferError": "a pass that broke its promise",
    "NotRunningError": "a pass whose result does not run",
    "PassCrashedError": "a bug of the pass, with its cause chained",
}
"""What the user can only report: no remedy is asked for."""

COMPLETED = {
    ("saving/", "RunError", "damaged: "): ("saving/folders.py", "damage_reported"),
    ("saving/constructors.py", "SavingError", ""): ("saving/standalone/tree.py", "Tree._module"),
    ("deploy/exporters.py", "ExportError", "the exporter failed"): ("deploy/chain.py", "Chain._first_that_works"),
}
"""(module, error, start of its text) of parts of a message -> the function that adds where it is, and the remedy."""

ELSEWHERE = {
    ("capture/preconditions.py", "require_capturable"): "the texts of `_PROBLEMS`, which a test of their own reads",
    ("cli/sources.py", "Wanted._made"): "the texts of `remedy_for`, which tests of the commands read",
    ("config/reading.py", "_config"): "the texts of `mistakes`, which tests of a config file read",
    ("config/reading.py", "_settings"): "as in `_config`",
    ("config/reading.py", "_optimizer"): "as in `_config`",
    ("option_types.py", "check_options"): "the words of `demand`, which say what the value must be",
    ("deploy/timing.py", "_first_that_runs"): "joins the texts of errors of ours, each with its remedy",
}
"""(module, function) whose text is made elsewhere -> where its remedy is."""


def faults(site: Site) -> list[str]:
    """What is wrong with the message of a site."""
    if (site.module, site.function) in ELSEWHERE:
        return []
    return [f"{why}: {text!r}" for text in site.variants for why in _faults(site, text)]


def _faults(site: Site, text: str) -> Iterator[str]:
    is_part = site.kind in PARTS or any(
        site.module.startswith(module) and site.kind == kind and text.startswith(start)
        for module, kind, start in COMPLETED
    )
    relays = any(re.search(rf"<[^>]*\b{name}\b[^>]*>", text) for name in site.relayed)
    text = re.sub(r"<[^>]*>", "<...>", text)
    if not text.replace("<...>", "").strip(" :;,.|"):
        return iter(() if relays or is_part else ("no text that can be read from the source",))
    if site.kind in PARTS and re.match(rf"(?:{'|'.join(VERBS)})\b", text, re.IGNORECASE):
        text = text[0].lower() + text[1:]  # the remedy, which is written as a sentence
    return itertools.chain(_style(text), () if is_part else _content(text, site.kind, relays=relays))


def _style(text: str) -> Iterator[str]:
    if text.rstrip().endswith((":", ";", ",")):
        yield "ends in the middle"
    if not START.match(text):
        yield "does not start in lower case or with an identifier"
    if "  " in text.replace("\n  ", "\n").replace("  # ", " # "):
        yield "holds two spaces in a row"
    if said := [words for words in DIALECT if words in text]:
        yield f"speaks dialect ({said[0]})"


def _content(text: str, kind: str, *, relays: bool) -> Iterator[str]:
    if not WHERE.search(text):
        yield "does not say where"
    if kind not in BUGS and not relays and not REMEDY.search(text):
        yield "does not say what to do"


@pytest.fixture(scope="module")
def package() -> Source:
    return Source.of_package()


def test_every_message_says_what_where_and_the_remedy(package):
    assert len(package.sites) > 400
    wrong = [f"{site}: {fault}" for site in package.sites for fault in faults(site)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_message_breaks_off_where_another_error_says_nothing(package):
    assert not list(unguarded(package))


def test_what_is_chosen_from_a_table_says_the_remedy_too(package):
    refusals = package.constants["capture/preconditions.py"]["_PROBLEMS"]
    texts = [text for name in refusals.elts for text in package.returned("capture/preconditions.py", name.id) if text]
    assert len(texts) >= len(refusals.elts)
    wrong = [f"{why}: {t!r}" for t in texts for why in (*_style(t), *_content(t, "CaptureError", relays=False))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(("module", "function"), sorted(set(COMPLETED.values())))
def test_who_completes_a_message_adds_where_and_the_remedy(package, module, function):
    texts = [t for site in package.sites if (site.module, site.function) == (module, function) for t in site.variants]
    around = [text for text in texts if re.search(r"<[^>]*(error|failures)[^>]*>", text)]
    assert around
    bare = [re.sub(r"<[^>]*>", "<...>", text) for text in around]
    assert not [why for text in bare for why in _content(text, "RunError", relays=False)]


def test_exemptions_are_in_use(package):
    there = {(site.module, site.function) for site in package.sites}
    assert not [f"{place}" for place in ELSEWHERE if place not in there]
    parts = [(s.module, s.kind, t) for s in package.sites for t in s.variants]
    unused = [
        part for part in COMPLETED
        if not any(m.startswith(part[0]) and k == part[1] and t.startswith(part[2]) for m, k, t in parts)
    ]  # fmt: skip
    assert not unused
    assert set(BUGS) <= {site.kind for site in package.sites}


def sample(text: str) -> list[str]:
    source = Source({"sample.py": text}, frozenset({"DataError", "UnsupportedCodeError"}))
    assert source.sites
    return [fault for site in source.sites for fault in faults(site)]


GOOD = {
    "an imperative after a semicolon": 'raise DataError(f"{name} is empty; give at least one batch")',
    "an imperative after a purpose": 'raise DataError(f"{name} is empty. To skip it, pass val_data=None")',
    "an example of what is right": 'raise DataError("shape=3: it must be a tuple, such as (1, 28, 28)")',
    "a text of two literals": 'raise DataError(f"{name} is empty; " "give at least one batch")',
    "a local text": 'def f(n):\n    hint = "; give 1" if n else "; give 2"\n    raise DataError(f"{n} is bad{hint}")',
    "a helper": 'def h(n):\n    return f"{n} is bad; give one"\ndef f(n):\n    raise DataError(h(n))',
    "a constant": 'FIX = "give one"\ndef f(n):\n    raise DataError(f"{n} is bad; {FIX}")',
    "an error of ours": 'try:\n    f()\nexcept DataError as error:\n    raise DataError(f"{name}: {error}") from error',
}

BAD = {
    "no text that can be read": "raise DataError(text)",
    "nothing at all": "raise DataError()",
    "no text that": 'raise DataError(f"{name}: {value}")',
    "ends in the middle": 'raise DataError(f"{name} is empty; give this:")',
    "does not start in lower case": 'raise DataError(f"Empty {name}; give at least one batch")',
    "two spaces": 'raise DataError(f"{name} is empty;  give at least one batch")',
    "dialect": 'raise DataError(f"{name} is told nothing, unless said; give at least one batch")',
    "does not say where": 'raise DataError("the data are empty; give at least one batch")',
    "does not say what to do": 'raise DataError(f"{name} is empty")',
    "one of two branches": 'raise DataError(f"{name} is empty" if n else f"{name} is bad; give another")',
    "a helper that says nothing": 'def h(n):\n    return f"{n} is bad"\ndef f(n):\n    raise DataError(h(n))',
    "a verb that is no imperative": 'raise DataError(f"{name} is empty and gives no batch")',
    "an error of others": 'try:\n    f()\nexcept OSError as error:\n    raise DataError(f"{name}: no: {error}")',
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_a_good_message_passes(text):
    assert not sample(text)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_bad_message_fails(text):
    assert sample(text)


@pytest.mark.parametrize("words", ["{error}", "{str(error)[:80]}", "{' '.join(str(error).split())}"])
def test_the_bare_words_of_a_foreign_error_are_found(words):
    text = f'try:\n    f()\nexcept (OSError, ValueError) as error:\n    raise DataError(f"{{name}}: {words}")'
    kinds = frozenset({"DataError"})
    assert len(list(unguarded(Source({"sample.py": text}, kinds)))) == 1
    assert not list(unguarded(Source({"sample.py": text.replace("(OSError, ValueError)", "DataError")}, kinds)))
