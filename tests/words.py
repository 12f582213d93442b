"""The words that this project's text avoids: British spellings, and phrases that a PyTorch user would not write.

Run as a script, it lists what a file or folder still has: `python tests/words.py fxsurgery/training README.md`.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

BRITISH = re.compile(
    r"\b\w*(?:"
    r"colour|behaviour|neighbour|honour|favour|licence|centre[ds]?\b|labell(?:ed(?!by)|ing)|catalogue|barycentre"
    r"|(?:initial|normal|optim|parametr|random|standard|minim|maxim|factor|quant|recogn|summar|synchron|special"
    r"|general|visual|serial|organ|penal|memor|vector|discret|local|util|elastic|material)is(?:e|ed|es|er|ing|ation)\b"
    r"|analys(?:e|ed|ing)\b"
    r")\w*",
    re.IGNORECASE,
)

DIALECT = re.compile(
    r"\b(?:unless (?:said|told)|(?:is|are|was|were|be) told\b|tells\b|told (?:elsewhere|apart)|comes? to nothing"
    r"|for want of|nobody|whoever|of ours\b|by now\b|as it stands|so many\b"
    r"|what it comes to|come to be"
    r"|goes? on (?:with|from)|what (?:a|an|the) \w+ comes? to|(?:is|are) looked (?:at|into)"
    r"|let be|lies? (?:in|at|below|above)|say '"
    r"|how loud|the lot\b|thrift)\b",
    re.IGNORECASE,
)

OPENINGS = re.compile(
    r"^(?:Of (?:the|a|an|all|each|one|its|his|what)\b|What (?!if\b|is\b)"
    r"|Whether so|How it goes|That\b|So many|Nor\b|By dim)",
)
"""How no docstring opens."""


@dataclass(frozen=True)
class Finding:
    """A word or phrase that is avoided."""

    path: Path
    line: int
    words: str

    def __str__(self) -> str:
        shown = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{shown}:{self.line}: {self.words}"


def findings(path: Path) -> Iterator[Finding]:
    """The findings in a Python, Markdown or HTML file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from _in_lines(path, _prose(text))
        return
    yield from _in_lines(path, _strings_and_comments(text))
    for line, doc in _docstrings(text):
        if opening := OPENINGS.match(doc):
            yield Finding(path, line, f"opens with {opening[0]!r}: {doc.splitlines()[0][:70]}")


def _in_lines(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Finding]:
    for number, line in lines:
        for pattern in (BRITISH, DIALECT):
            for match in pattern.finditer(line):
                yield Finding(path, number, match[0])


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a page, without what stands in backquotes."""
    for number, line in enumerate(text.splitlines(), 1):
        yield number, re.sub(r"`[^`]*`", "", line)


def _strings_and_comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in {tokenize.STRING, tokenize.COMMENT} or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, re.sub(r"`[^`]*`", "", line)
        elif token.type == tokenize.NAME and BRITISH.search(token.string):
            yield token.start[0], token.string


def _docstrings(text: str) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, its classes, functions and fields, with their lines."""
    for node in ast.walk(ast.parse(text)):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def files_in(path: Path) -> list[Path]:
    """The files that are read under `path`, or `path` itself."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix in {".py", ".md", ".html"} and "results" not in p.parts)


if __name__ == "__main__":
    found = [f for given in sys.argv[1:] for path in files_in(Path(given).resolve()) for f in findings(path)]
    print("\n".join(map(str, found)) or "none")  # noqa: T201
    sys.exit(bool(found))
