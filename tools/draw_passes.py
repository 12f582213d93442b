"""Write docs/passes.md and its pictures for every pass of the registry: `python tools/draw_passes.py`.

The text comes from the passes: the docstrings, the options, the reasons in their refusals, and an example on
one of the small models that is run while it is written. Prose written by hand is in `passes_prose.md`.
"""

import ast
import contextlib
import functools
import inspect
import io
import itertools
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from fxsurgery import Program, capture
from fxsurgery.passes import ALL
from fxsurgery.seeding import seeded
from fxsurgery.surgery import Effect, PassResult, Rewrite, Trains
from picture import Box, near, picture
from small_models import MODELS

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
WHOLE = 0.6
"""Draw whole graphs if more than this fraction of their nodes is near the change; otherwise only that part."""
TIMES, ARROW = "\N{MULTIPLICATION SIGN}", "\N{RIGHTWARDS ARROW}"

EFFECTS = {Effect.EXACT: "exact", Effect.LOSSY: "lossy"}
TRAINING = {
    Trains.ALIKE: "the same steps lead the result and the program before to the same outputs",
    Trains.ON: "where the effect is exact, it starts from the same outputs in train mode as well, and goes its own way",
    Trains.NO: "the result is made for inference: in train mode it computes something else",
}


@dataclass(frozen=True, eq=False)
class Example:
    """A move on a small model, as code and with its result."""

    model: type[nn.Module]
    first: Rewrite | None
    """A pass that is applied before, such as the one that the move undoes."""
    move: Rewrite
    start: Program
    result: PassResult

    def code(self) -> str:
        """Return the code that a reader copies and runs."""
        names = sorted({type(p).__name__ for p in (self.first, self.move) if p})
        prepare = f"program = {call(self.first)}(program).program\n" if self.first else ""
        return formatted(
            f"import torch\nfrom torch import nn\n\nfrom fxsurgery import capture\n"
            f"from fxsurgery.passes import {', '.join(names)}\n\n\n{inspect.getsource(self.model)}\n\n"
            f"torch.manual_seed(0)\nprogram = capture({self.model.__name__}().eval(), torch.randn(2, 3, 12, 12))\n"
            f"{prepare}result = {call(self.move)}(program)\n"
            "print(result.effect.value, result.changes, *result.refusals)\n"
        )


_HOMES = ("fxsurgery.analysis", "fxsurgery.rewriting")
"""Packages whose refusals are reasons of a pass."""


def formatted(code: str) -> str:
    """Format code with `ruff format`, which also checks the pages."""
    ruff = [sys.executable, "-m", "ruff", "format", "-"]
    return subprocess.run(ruff, input=code, capture_output=True, text=True, check=True, cwd=HERE).stdout


def call(move: Rewrite) -> str:
    """Return the expression that makes a pass, without options at their defaults."""
    given = {f.name: getattr(move, f.name) for f in fields(move) if getattr(move, f.name) != f.default}
    return f"{type(move).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@functools.cache
def captured(model: type[nn.Module]) -> Program:
    """Capture a small model."""
    with seeded(0, torch.device("cpu")):
        return capture(model().eval(), torch.randn(2, 3, 12, 12))


def starts(models: Iterable[type[nn.Module]]) -> Iterator[tuple[type[nn.Module], Rewrite | None, Program]]:
    """Yield each model as captured, then each after the first candidate of each pass."""
    models = list(models)
    yield from ((model, None, captured(model)) for model in models)
    for model, pass_type in itertools.product(models, ALL.values()):
        if (move := next(iter(pass_type.candidates(captured(model))), None)) is not None:
            yield model, move, move(captured(model)).program


def example(pass_type: type[Rewrite], preferred: str | None) -> Example:
    """Return the first candidate on the first small model that has one, unchanged or after another pass."""
    for model, first, program in starts(sorted(MODELS, key=lambda m: m.__name__ != preferred)):
        if first is not None and type(first) is pass_type:
            continue
        if (move := next(iter(pass_type.candidates(program)), None)) is not None:
            return Example(model, first, move, program, move(program))
    raise LookupError(f"{pass_type.name} has no candidate on any of small_models.py: add a network that has one")


def drawn(shown: Example) -> str:
    """Draw an example."""
    programs = shown.start, shown.result.program
    states = _states(*programs), _states(*programs[::-1], new="new")
    around = [_around(p, s) for p, s in zip(programs, states, strict=True)]
    total = sum(len(p.nodes) for p in programs)
    both = around[0] | around[1]
    if sum(n.name in both for p in programs for n in p.nodes) > WHOLE * total:
        both = {n.name for p in programs for n in p.nodes}
    boxes = [_boxes(p, s, both) for p, s in zip(programs, states, strict=True)]
    return picture(*boxes, title=f"{shown.move} on {shown.model.__name__}")


def _around(program: Program, states: dict[str, str]) -> set[str]:
    """Return the nodes that a pass changed, and their neighbors."""
    reads = {n.name: [r.name for r in n.all_input_nodes] for n in program.nodes}
    return near(reads, {name for name, state in states.items() if state != "same"}, 1)


def _states(program: Program, other: Program, new: str = "removed") -> dict[str, str]:
    """Return for each node whether it is the same in the other program, changed, or missing."""
    theirs, found = {n.name: n for n in other.nodes}, dict[str, str]()
    for node in program.nodes:
        if (twin := theirs.get(node.name)) is None:
            found[node.name] = new
        else:
            same = _what(program, node) == _what(other, twin) and _tensors(program, node) == _tensors(other, twin)
            found[node.name] = "same" if same else "changed"
    return found


def _what(program: Program, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{node.target} {program.module(node)!r}"
    return f"{node.target} {[a for a in node.args if not isinstance(a, fx.Node)]} {dict(node.kwargs)}"


def _tensors(program: Program, node: fx.Node) -> list[int]:
    """Return the identities of a node's tensors: programs share those that a pass did not replace."""
    if node.op == "get_attr":
        value: Any = program.graph_module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return [id(value)]
    if node.op != "call_module":
        return []
    module = program.module(node)
    return [id(tensor) for tensor in (*module.parameters(), *module.buffers())]


def _boxes(program: Program, states: dict[str, str], shown: set[str]) -> list[Box]:
    reads = {n.name: [r.name for r in n.all_input_nodes] for n in program.nodes}
    shapes, found = _shapes(program), list[Box]()
    for node in program.nodes:
        if node.name in shown:
            lines = (
                _label(program, node),
                " \N{MIDDLE DOT} ".join(filter(None, (_where(node), shapes.get(node.name)))),
            )
            hidden = [r for r in reads[node.name] if r not in shown]
            if hidden:
                found.append(Box(f"{node.name} above", ("...",), (), "more"))
            sources = [*(r for r in reads[node.name] if r in shown), *([f"{node.name} above"] if hidden else [])]
            found.append(Box(node.name, tuple(filter(None, lines)), tuple(sources), states[node.name]))
            if any(r.name not in shown for r in node.users):
                found.append(Box(f"{node.name} below", ("...",), (node.name,), "more"))
    return found


def _shapes(program: Program) -> dict[str, str]:
    """Return the output shape of each node on the example inputs, without the batch."""
    model = program.trainable_copy()
    ShapeProp(model).propagate(*program.examples.clone().leaves)
    metas = {n.name: n.meta.get("tensor_meta") for n in model.graph.nodes}
    return {name: TIMES.join(map(str, m.shape[1:])) for name, m in metas.items() if hasattr(m, "shape") and m.shape[1:]}


def _where(node: fx.Node) -> str:
    return str(node.target) if node.op in {"call_module", "get_attr"} else ""


def _label(program: Program, node: fx.Node) -> str:
    """Return a short label: the type and sizes of a module, or a function and its numbers."""
    if node.op == "call_module":
        return _module_label(program.module(node))
    if node.op in {"placeholder", "output"}:
        return node.name
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    numbers = [str(a).replace(" ", "") for a in node.args if not isinstance(a, fx.Node) and "%" not in str(a)]
    numbers = [n for n in numbers if not re.search("[a-z]", n)]
    return f"{name.rpartition('.')[2]} {' '.join(numbers)}".strip()[:28] if node.op != "get_attr" else "tensor"


def _module_label(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        kernel = TIMES.join(map(str, module.kernel_size))
        extra = f" /{module.stride[0]}" if set(module.stride) != {1} else ""
        extra += f" groups {module.groups}" if module.groups > 1 else ""
        return f"{kind} {module.in_channels}{ARROW}{module.out_channels} {kernel}{extra}"
    if isinstance(module, nn.Linear):
        return f"{kind} {module.in_features}{ARROW}{module.out_features}"
    if isinstance(width := getattr(module, "num_features", None), int):
        return f"{kind} {width}"
    if isinstance(size := getattr(module, "kernel_size", None), (int, tuple)):
        return f"{kind} {size}".replace(" (", " (")
    said = module.extra_repr().replace(" ", "")
    return f"{kind} {said}" if said and len(said) <= 18 and "\n" not in said else kind


def section(name: str, prose: str, shown: Example) -> str:
    """Return the section of one pass."""
    pass_type = ALL[name]
    with contextlib.redirect_stdout(io.StringIO()) as out, torch.random.fork_rng(devices=[]):
        exec(compile(shown.code(), f"example of {name}", "exec", dont_inherit=True), {"__name__": "example"})
    module = inspect.getmodule(pass_type)
    said, options = inspect.getdoc(module) or "", _options(pass_type)
    moves = inspect.getdoc(pass_type.__dict__["candidates"].__func__) if "candidates" in pass_type.__dict__ else None
    own = moves if moves and moves != inspect.getdoc(Rewrite.candidates) else None
    reasons = [f"- {reason}" for reason in (_reasons(module) if module else ())]
    parts = [
        f"## {name}",
        f"{inspect.getdoc(pass_type)}",
        prose,
        _indented(said),
        options,
        f"**A search tries:** {_flat(own)}" if own else "",
        f"**Effect** on the example: {EFFECTS[shown.result.effect]}. **Training:** {TRAINING[pass_type.trains]}.",
        "**Reasons that it gives for leaving a place alone:**\n\n" + "\n".join(reasons) if reasons else "",
        f"![{name}, before and after](images/{name}.svg)",
        f"<details><summary>The example, to copy and run</summary>\n\n```python\n{shown.code()}```",
        f"```text\n{out.getvalue()}```\n\n</details>",
    ]
    return "\n\n".join(part for part in parts if part)


def _indented(said: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in said.splitlines())


def _flat(text: str) -> str:
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


def _options(pass_type: type[Rewrite]) -> str:
    """Return a table of the fields, from their annotations, defaults and docstrings."""
    if not fields(pass_type):
        return ""
    found = ast.parse(textwrap.dedent(inspect.getsource(pass_type))).body[0]
    said, kinds = dict[str, str](), dict[str, str]()
    body = found.body if isinstance(found, ast.ClassDef) else []
    for number, line in enumerate(body):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            kinds[line.target.id] = ast.unparse(line.annotation).replace("|", "\\|")
            after = body[number + 1] if number + 1 < len(body) else None
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                said[line.target.id] = " ".join(str(after.value.value).split())
    for name, hint in get_type_hints(pass_type, include_extras=True).items():
        if get_origin(hint) is Annotated:
            bare, *bounds = get_args(hint)
            kinds[name] = (bare.__name__ if isinstance(bare, type) else str(bare)).replace("|", "\\|")
            said[name] = f"{said.get(name, '')} It must be {' and '.join(map(str, bounds))}.".strip()
    rows = [
        f"| `{f.name}` | `{kinds.get(f.name, '')}` | {'' if f.default is MISSING else f'`{f.default!r}`'} "
        f"| {said.get(f.name, '')} |"
        for f in fields(pass_type)
    ]
    return "| option | | default | |\n| --- | --- | --- | --- |\n" + "\n".join(rows)


def _reasons(module: ModuleType) -> list[str]:
    """Return the refusal reasons of a pass: its own, then those of the functions of `_HOMES` that it calls."""
    found = _told(ast.parse(inspect.getsource(module)))
    for asked in vars(module).values():
        if _is_asked(asked) and "Refusal" in str(inspect.signature(asked).return_annotation):
            found += _answers(asked, set())
    return list(dict.fromkeys(reason for reason in found if " " in re.sub("[^a-z ]", "", reason).strip()))


def _is_asked(thing: object) -> bool:
    return inspect.isfunction(thing) and thing.__module__.startswith(_HOMES)


def _answers(asked: Callable[..., object], known: set[object]) -> list[str]:
    """Return the refusal reasons of a function, and those of the functions and classes that it names."""
    known.add(asked)
    tree, home = ast.parse(textwrap.dedent(inspect.getsource(asked))), vars(inspect.getmodule(asked))
    found = _told(tree)
    for name in [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]:
        named = inspect.unwrap(home[name]) if callable(home.get(name)) else None
        if named not in known and (inspect.isfunction(named) or inspect.isclass(named)):
            found += _answers(named, known) if named.__module__.startswith(_HOMES) else []
    return found


def _told(tree: ast.AST) -> list[str]:
    """Return the texts of the refusals in a syntax tree."""
    found = list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) > 1:
            name = ast.unparse(node.func).rpartition(".")[2]
            found += _texts(node.args[1]) if name in {"refuse", "Refusal", "ObstacleError"} else []
    return found


def _texts(value: ast.expr) -> list[str]:
    if isinstance(value, ast.Constant):
        return [value.value] if isinstance(value.value, str) else []
    if isinstance(value, ast.JoinedStr):
        return ["".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in value.values)]
    if isinstance(value, ast.IfExp):
        return [*_texts(value.body), *_texts(value.orelse)]
    if isinstance(value, ast.BoolOp):
        return [text for part in value.values for text in _texts(part)]
    return []


def prose() -> dict[str, str]:
    """Return the prose of each pass, and under "" the introduction."""
    parts = re.split(r"^## (.+)\n", (HERE / "passes_prose.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": parts[0].strip(), **{k.strip(): v.strip() for k, v in zip(parts[1::2], parts[2::2], strict=True)}}


def pages() -> dict[str, str]:
    """Return the page and each picture by path from docs/."""
    written, sections, rows = prose(), list[str](), list[str]()
    found = dict[str, str]()
    for name in sorted(ALL):
        said = written.get(name, "")
        preferred = match.group(1) if (match := re.search(r"<!-- on (\w+) -->\n?", said)) else None
        shown = example(ALL[name], preferred)
        found[f"images/{name}.svg"] = drawn(shown)
        sections.append(section(name, re.sub(r"<!-- .* -->\n?", "", said), shown))
        what = (inspect.getdoc(inspect.getmodule(ALL[name])) or "").splitlines()[0]
        rows.append(f"| [`{name}`](#{name}) | {what} | {EFFECTS[shown.result.effect]} | {ALL[name].trains.value} |")
    table = "| pass | what it does | effect | training |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
    found["passes.md"] = "\n\n".join([written[""], table, *sections]) + "\n"
    return found


def main() -> None:
    """Write all pages, and delete the pictures of passes that no longer exist."""
    found = pages()
    (DOCS / "images").mkdir(exist_ok=True)
    for path, text in found.items():
        (DOCS / path).write_text(text, encoding="utf-8")
    for old in (DOCS / "images").glob("*.svg"):
        if f"images/{old.name}" not in found:
            old.unlink()


if __name__ == "__main__":
    main()
