"""Finds every place in the package that makes an error of ours, and reads the text of its message from the source.

The text is read without running anything. A value that only exists at run time stands as `<name>`. A message has
several variants where the source chooses between texts: each branch of a conditional expression, each assignment to
a local name, each return of a helper function.
"""

import ast
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nonempty import possibly_empty

PACKAGE = Path(__file__).parents[1] / "fxsurgery"
MOST_VARIANTS = 64
DEEPEST = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Site:
    """One construction of an error."""

    module: str
    function: str
    line: int
    kind: str
    variants: tuple[str, ...]
    relayed: frozenset[str]
    """Names of caught errors of ours, whose text carries a remedy of its own."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.kind} in {self.function}"


class Source:
    """The modules of a package, or of a sample in a test."""

    def __init__(self, texts: dict[str, str], kinds: frozenset[str]) -> None:
        self.trees = {name: ast.parse(text) for name, text in texts.items()}
        self.kinds = kinds
        self.functions: dict[str, list[tuple[str, Function]]] = defaultdict(list)
        self.constants: dict[str, dict[str, ast.expr]] = defaultdict(dict)
        self.imports: dict[str, dict[str, str]] = defaultdict(dict)
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    self.functions[node.name].append((module, node))
                if isinstance(node, ast.ImportFrom) and node.module:
                    home = f"{node.module.removeprefix('fxsurgery.').replace('.', '/')}.py"
                    self.imports[module].update({alias.asname or alias.name: home for alias in node.names})
            self.constants[module].update(_assigned(tree.body))

    @classmethod
    def of_package(cls) -> "Source":
        texts = {str(p.relative_to(PACKAGE)): p.read_text(encoding="utf-8") for p in sorted(PACKAGE.rglob("*.py"))}
        return cls(texts, errors_of_ours(texts.values()))

    @cached_property
    def sites(self) -> list[Site]:
        return [site for module, tree in self.trees.items() for site in self._sites(module, tree)]

    def _sites(self, module: str, tree: ast.Module) -> Iterator[Site]:
        for path in paths(tree):
            node = path[-1]
            if not isinstance(node, ast.Call) or not (kind := self._kind(module, path)):
                continue
            functions = [n for n in path if isinstance(n, Function)]
            scope = functions[-1] if functions else None
            args = [arg for arg in (*node.args, *(k.value for k in node.keywords)) if self._is_text(arg)]
            texts = [tuple(self.read(arg, module, scope)) for arg in (args if kind in PARTS else args[:1])]
            variants = tuple(text for some in texts for text in some) or ("",)
            name = ".".join(n.name for n in path if isinstance(n, Function | ast.ClassDef)) or "<module>"
            yield Site(module, name, node.lineno, kind, variants, self._relayed(path))

    def _is_text(self, arg: ast.expr) -> bool:
        return not isinstance(arg, ast.Constant) or isinstance(arg.value, str)

    def _kind(self, module: str, path: list[ast.AST]) -> str | None:
        """The class that a call makes: one of ours, or the one in a variable of a `raise`."""
        call = path[-1]
        assert isinstance(call, ast.Call)
        name = name_of(call.func)
        if name in self.kinds:
            return name
        raised = len(path) > 1 and isinstance(path[-2], ast.Raise) and isinstance(call.func, ast.Name)
        if name in FACTORIES:
            return FACTORIES[name]
        if raised and name not in self.functions and name not in self.imports[module] and name.islower():
            return f"<{name}>"
        return None

    def _relayed(self, path: list[ast.AST]) -> frozenset[str]:
        handlers = [n for n in path if isinstance(n, ast.ExceptHandler) and n.name and n.type is not None]
        return frozenset(str(h.name) for h in handlers if h.type is not None and names_of(h.type) <= self.kinds)

    def returned(self, module: str, name: str) -> list[str]:
        """The variants of what a function returns."""
        [function] = [f for home, f in self.functions[name] if home == module]
        values = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
        return _unique(values, lambda n: self.read(n, module, function))

    def read(self, node: ast.AST, module: str, scope: Function | None, depth: int = 0) -> list[str]:
        """The variants of the text of an expression."""
        match node:
            case ast.Constant(value=value):
                return ["" if value is None else str(value)]
            case ast.JoinedStr(values=parts):
                return self._joined(parts, module, scope, depth)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._joined([left, right], module, scope, depth)
            case ast.IfExp(body=body, orelse=orelse):
                return _unique([body, orelse], lambda n: self.read(n, module, scope, depth))
            case ast.BoolOp(op=op, values=[*first, last]):
                texts = self.read(last, module, scope, depth)
                if isinstance(op, ast.Or):
                    texts = [*filter(None, _unique(first, lambda n: self.read(n, module, scope, depth))), *texts]
                return list(dict.fromkeys(texts if isinstance(op, ast.Or) else ["", *texts]))
            case _:
                return self._looked_up(node, module, scope, depth)

    def _formatted(self, node: ast.FormattedValue, module: str, scope: Function | None, depth: int) -> list[str]:
        value = node.value
        if node.conversion != -1 or node.format_spec is not None or isinstance(value, ast.Constant):
            return [_placeholder(value)]
        return self.read(value, module, scope, depth)

    def _joined(self, parts: Iterable[ast.AST], module: str, scope: Function | None, depth: int) -> list[str]:
        found = [self.read(part, module, scope, depth) for part in parts]
        return list(dict.fromkeys("".join(some) for some in itertools.islice(itertools.product(*found), MOST_VARIANTS)))

    def _looked_up(self, node: ast.AST, module: str, scope: Function | None, depth: int) -> list[str]:
        if isinstance(node, ast.FormattedValue):
            return self._formatted(node, module, scope, depth)
        texts: list[str] = []
        if depth < DEEPEST:
            if isinstance(node, ast.Name):
                texts = self._of_name(node.id, module, scope, depth + 1)
            elif isinstance(node, ast.Call):
                texts = self._of_call(node, module, scope, depth + 1)
        return texts or [_placeholder(node)]

    def _of_name(self, name: str, module: str, scope: Function | None, depth: int) -> list[str]:
        assigned = [] if scope is None else [v for n, v in _assignments(scope) if n == name]
        if assigned and scope is not None:
            if not all(_is_textual(v) for v in assigned):
                return []
            texts = _unique(assigned, lambda n: self.read(n, module, scope, depth))
            return [text for text in texts if text] if _is_tested(name, scope) else texts
        if scope is not None and name in _parameters(scope):
            return self._of_parameter(name, scope, depth) if name == "remedy" else []
        home = self.imports[module].get(name, module)
        value = self.constants[home].get(name) if home in self.constants else None
        return self.read(value, home, None, depth) if value is not None and _is_textual(value) else []

    def _of_parameter(self, name: str, scope: Function, depth: int) -> list[str]:
        """What the callers of a function pass."""
        found = list[str]()
        for module, path in possibly_empty(self._calls[scope.name]):
            call, functions = path[-1], [n for n in path if isinstance(n, Function)]
            assert isinstance(call, ast.Call)
            passed = [k.value for k in call.keywords if k.arg == name]
            at = [p for p in _parameters(scope) if p not in {"self", "cls"}].index(name)
            passed += call.args[at : at + 1]
            found += [t for n in passed for t in self.read(n, module, functions[-1] if functions else None, depth)]
        return found

    @cached_property
    def _calls(self) -> dict[str, list[tuple[str, list[ast.AST]]]]:
        found = defaultdict[str, list[tuple[str, list[ast.AST]]]](list)
        for module, tree in self.trees.items():
            for path in paths(tree):
                if isinstance(path[-1], ast.Call):
                    found[name_of(path[-1].func)].append((module, path))
        return found

    def _of_elements(self, node: ast.AST, module: str, scope: Function | None, depth: int) -> list[str]:
        """The variants of one text of several that are joined."""
        if isinstance(node, ast.Call) and node.args:
            return self._of_elements(node.args[0], module, scope, depth)
        if isinstance(node, ast.Name) and scope is not None:
            made = [value for name, value in _assignments(scope) if name == node.id]
            return self._of_elements(made[0], module, scope, depth + 1) if len(made) == 1 and depth < DEEPEST else []
        if isinstance(node, ast.ListComp | ast.GeneratorExp) and _is_textual(node.elt):
            return self.read(node.elt, module, scope, depth)
        return []

    def _of_call(self, node: ast.Call, module: str, scope: Function | None, depth: int) -> list[str]:
        name = name_of(node.func)
        if name == "format" and isinstance(node.func, ast.Attribute):
            return self.read(node.func.value, module, scope, depth)
        if name == "get" and isinstance(node.func, ast.Attribute) and len(node.args) == 2:
            texts = self.constants[module].get(name_of(node.func.value))
            choices = [*texts.values, node.args[1]] if isinstance(texts, ast.Dict) else []
            return _unique(choices, lambda n: self.read(n, module, scope, depth))
        if name == "join" and node.args:
            return self._of_elements(node.args[0], module, scope, depth)
        home = self.imports[module].get(name, module)
        found = self.functions.get(name, [])
        nearest = [f for f in found if f[0] == home] or (found if isinstance(node.func, ast.Attribute) else [])
        if len(nearest) > 1 and isinstance(node.func, ast.Attribute):
            nearest = [f for f in nearest if name_of(f[1].returns) == "str"]
        if len(nearest) != 1:
            return []
        home, function = nearest[0]
        returned = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value is not None]
        if not returned or not all(_is_textual(v) for v in returned):
            return []
        return _unique(returned, lambda n: self.read(n, home, function, depth))


FACTORIES = {"unsupported": "UnsupportedCodeError", "_unsupported": "UnsupportedCodeError"}
"""Functions that make an error of texts that they are given."""

PARTS = frozenset({"UnsupportedCodeError", "UntraceableError", "_ObstacleError"})
"""Errors that never leave the package: one place catches them and writes the message around their text."""


def errors_of_ours(texts: Iterable[str]) -> frozenset[str]:
    """The classes of `errors.py`, their subclasses elsewhere, and those of `PARTS`."""
    classes = [n for text in texts for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)]
    found = {"SurgeryError", *PARTS}
    while more := {c.name for c in classes if found & {name_of(b) for b in c.bases}} - found:
        found |= more
    return frozenset(found)


def paths(tree: ast.AST) -> Iterator[list[ast.AST]]:
    """Each node, behind all that it stands in."""
    waiting: list[list[ast.AST]] = [[tree]]
    while waiting:
        path = waiting.pop()
        yield path
        waiting.extend([*path, child] for child in reversed(list(ast.iter_child_nodes(path[-1]))))


def _assigned(body: Iterable[ast.AST]) -> dict[str, ast.expr]:
    return {name: value for node in body for name, value in _targets(node)}


def _assignments(scope: Function) -> list[tuple[str, ast.expr]]:
    return [pair for node in ast.walk(scope) for pair in _targets(node)]


def _targets(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            yield name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            yield name, value
        case ast.NamedExpr(target=ast.Name(id=name), value=value):
            yield name, value
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            yield from ((n.id, v) for n, v in zip(names, values, strict=True) if isinstance(n, ast.Name))


def _parameters(scope: Function) -> list[str]:
    return [a.arg for a in (*scope.args.args, *scope.args.kwonlyargs)]


def _is_tested(name: str, scope: Function) -> bool:
    """Whether a function asks about a name before it uses it, so that an empty text does not reach a message."""
    tests = [n.test for n in ast.walk(scope) if isinstance(n, ast.If)]
    return any(name_of(n) == name for test in tests for n in ast.walk(test) if isinstance(n, ast.Name))


def _is_textual(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, str) or value is None
        case ast.JoinedStr() | ast.BoolOp():
            return not isinstance(node, ast.BoolOp) or _is_textual(node.values[-1])
        case ast.BinOp(left=left):
            return _is_textual(left)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_textual(body) or _is_textual(orelse)
    return isinstance(node, ast.Call)


def _placeholder(node: ast.AST) -> str:
    return f"<{ast.unparse(node).replace('<', '').replace('>', '')[:60]}>"


def name_of(node: ast.AST | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def names_of(node: ast.AST) -> set[str]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return {name_of(part) for part in parts}


def _unique(nodes, read) -> list[str]:
    return list(dict.fromkeys(text for node in nodes for text in read(node)))[:MOST_VARIANTS]
