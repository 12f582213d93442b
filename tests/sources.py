"""The sources of the tests, and which of their functions assert."""

import ast
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent
GUARDS = {"nonempty", "possibly_empty"}
CHECKS = {"raises", "warns", "deprecated_call", "fail"}
"""Functions of pytest that assert."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Name = tuple[str, str]
"""A file and a name in it."""


@dataclass
class Sources:
    """Test files by path, each as its text."""

    texts: dict[str, str]
    functions: dict[Name, list[Function]] = field(default_factory=lambda: defaultdict(list))
    constants: dict[Name, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[Name, Name] = field(default_factory=dict)
    asserting: set[Name] = field(default_factory=set)
    """Functions that assert something somewhere."""
    certain: set[Name] = field(default_factory=set)
    """Functions that assert something on each path."""

    def __post_init__(self) -> None:
        self.trees = {file: ast.parse(text) for file, text in self.texts.items()}
        for file, tree in self.trees.items():
            self._read(file, tree)
        self._grow(self.asserting, any, self.asserts)
        self._grow(self.certain, all, lambda file, f: self.always_asserts(file, f.body))

    @classmethod
    @functools.cache
    def of_tests(cls) -> "Sources":
        """Read every file under `tests/`."""
        return cls({str(p.relative_to(TESTS)): p.read_text(encoding="utf-8") for p in sorted(TESTS.rglob("*.py"))})

    def _read(self, file: str, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, Function):
                self.functions[file, node.name].append(node)
            elif isinstance(node, ast.ImportFrom) and node.module:
                home = node.module.replace(".", "/") + ".py"
                self.imports |= {(file, a.asname or a.name): (home, a.name) for a in node.names}
        for name, value in bindings(tree.body):
            self.constants[file, name].append(value)

    def _grow(self, known: set[Name], how: Callable[..., bool], holds: Callable[[str, Function], bool]) -> None:
        """Add the functions for which something holds, until those that call them are in as well."""
        size = -1
        while size < len(known):
            size = len(known)
            known |= {at for at, found in self.functions.items() if how(holds(at[0], f) for f in found)}

    def asserts(self, file: str, node: ast.AST) -> bool:
        """Whether anything in this node asserts, or calls what does somewhere."""
        return any(isinstance(n, ast.Assert) or self._is_check(file, n, self.asserting) for n in _checks(node))

    def _is_check(self, file: str, node: ast.Call, known: set[Name]) -> bool:
        name = name_of(node.func)
        if name in CHECKS or name.startswith("assert_"):
            return True
        home = (file, name) if (file, name) in self.functions else self.imports.get((file, name), ("", ""))
        return isinstance(node.func, ast.Name) and name not in GUARDS and home in known

    def always_asserts(self, file: str, body: list[ast.stmt]) -> bool:
        """Whether something is asserted on each path through these statements; a test that is skipped is seen to be."""
        for statement in body:
            if self._always(file, statement):
                return True
            if _leaves(statement):
                return False
        return False

    def _always(self, file: str, statement: ast.stmt) -> bool:
        always, calls = functools.partial(self.always_asserts, file), functools.partial(self._calls_check, file)
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.While():
                found = False
            case ast.If(test=test, body=body, orelse=orelse):
                found = calls(test) or (always(body) and (always(orelse) or _raises(orelse)))
            case ast.For(iter=values, body=body):
                found = calls(values) or always(body)
            case ast.With(items=items, body=body):
                suppresses = any(name_of(i.context_expr) == "suppress" for i in items)
                found = any(map(calls, items)) or (not suppresses and always(body))
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                caught = all(always(h.body) or _raises(h.body) for h in handlers)
                found = always(final) or (caught and (always(body) or always(orelse)))
            case _:
                found = isinstance(statement, ast.Assert) or calls(statement)
        return found

    def _calls_check(self, file: str, node: ast.AST) -> bool:
        return any(isinstance(n, ast.Call) and self._is_check(file, n, self.certain) for n in _checks(node))


@functools.cache
def _checks(node: ast.AST) -> tuple[ast.Assert | ast.Call, ...]:
    """What may assert in a node."""
    return tuple(n for n in ast.walk(node) if isinstance(n, ast.Assert | ast.Call))


def name_of(node: ast.AST) -> str:
    """The last name of `a.b.c`, `c` or a call of it."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Call(func=function):
            return name_of(function)
    return ""


def bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """The names that statements bind to a value each."""
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                yield name, value


def _raises(body: list[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Raise)


@functools.cache
def _leaves(node: ast.AST, *, in_loop: bool = False) -> bool:
    """Whether a statement may leave the test, or the turn of the loop around it."""
    if isinstance(node, Function | ast.ClassDef | ast.expr):
        return False
    if isinstance(node, ast.Return) or (isinstance(node, ast.Continue | ast.Break) and not in_loop):
        return True
    in_loop |= isinstance(node, ast.For | ast.While)
    return any(_leaves(n, in_loop=in_loop) for n in ast.iter_child_nodes(node))
