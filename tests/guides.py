"""README.md and the pages of docs/, whose blocks run in order: what a reader copies is what a test has run.

The names that a reader has already (`my_model`, `train_data`) come from `tests/docs/preludes/`: `common.py` for all
pages, then the file of the page's name, if there is one. A `text` block is what the Python block before it prints;
where `<!-- numbers vary -->` is above it, numbers, the spaces around them and lines of notes are not compared.
"""

import contextlib
import functools
import io
import re
import shlex
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PRELUDES = Path(__file__).parent / "docs" / "preludes"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))

BLOCK = re.compile(r"^(<!-- numbers vary -->\n)?```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r" *[-+]?(?:\d[\d,]*\.?\d*|inf|nan)(?:e[-+]?\d+)?:?\d*T?Z? *")

ELSEWHERE = ("pip install", "make", "git clone", "cd", "torchrun", "accelerate launch", "mkdocs", "apt-get install")
"""How the commands begin that a test does not run: they install, start other processes, or build what others test."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text; whether its numbers vary from run to run."""

    language: str
    text: str
    varies: bool = False


@dataclass(frozen=True)
class Guide:
    """A page after its blocks have run."""

    blocks: tuple[Block, ...]
    space: dict[str, object]
    """The names that its code has defined."""
    printed: list[tuple[str, Block]] = field(default_factory=list)
    """The output of a block of Python, with the block that shows it."""


def page_of(name: str) -> str:
    """The text of a page: `README.md`, or a name in docs/."""
    return next(path for path in PAGES if path.name == name).read_text(encoding="utf-8")


def blocks_of(name: str) -> tuple[Block, ...]:
    """All fenced blocks of a page."""
    return tuple(Block(language, text, bool(varies)) for varies, language, text in BLOCK.findall(page_of(name)))


@functools.cache
def run(name: str) -> Guide:
    """Run the Python blocks of a page, once a process, in an empty folder."""
    guide, printed = Guide(blocks_of(name), {"__name__": "guide"}), ""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prepare(name, guide.space)
        for number, block in enumerate(guide.blocks):
            if block.language == "text":
                guide.printed.append((printed, block))
            elif block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(block.text, f"{name}, block {number}", "exec", dont_inherit=True), guide.space)
                printed = out.getvalue()
    return guide


def prepare(name: str, space: dict[str, object]) -> None:
    """Define what the reader of a page brings along."""
    for path in (PRELUDES / "common.py", PRELUDES / f"{Path(name).stem.replace('-', '_').lower()}.py"):
        if path.exists():
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), space)


def comparable(text: str, *, varies: bool) -> str:
    """The text, or what of it does not vary."""
    if not varies:
        return text
    return "\n".join(NUMBER.sub("#", line) for line in text.splitlines() if not line.startswith("note: "))


def commands(text: str) -> list[str]:
    """The commands of a block of shell, without comments and line breaks."""
    lines = text.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines)
    return [shlex.join(words) for words in split if words]


def run_command(command: str) -> tuple[int, str]:
    """Run `fxsurgery ...` in this process: its exit code, and what it wrote."""
    from fxsurgery.cli import app

    _, *words = shlex.split(command)
    target = words.index(">") if ">" in words else len(words)
    done = CliRunner().invoke(app, words[:target], prog_name="fxsurgery")
    for path in words[target + 1 :]:
        Path(path).write_text(done.stdout, encoding="utf-8")
    return done.exit_code, done.output
