"""Finds assertions that may hold of nothing: in a loop without turns, about values that may be none, on one path of two.

The sources are read, not run. What is asserted of each of several values needs values that are known to be there: a
literal, a range of constants, a name for either, or `nonempty(...)`, which fails without any. And each test asserts
something whatever path it takes.
"""

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
KEEPS_LENGTH = {"enumerate", "sorted", "reversed", "list", "tuple", "set", "frozenset", "dict", "iter"}
"""Functions whose result is empty only where their first argument is."""
NEVER_EMPTY = {"split", "modules", "named_modules"}
"""Methods that always give something: a text has one part at least, and a module is one of its own modules."""
COLLECTIONS = KEEPS_LENGTH | {"map", "filter"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
Place = tuple[str, str]
"""A file and a name in it."""


@dataclass(frozen=True)
class Finding:
    """An assertion that may hold of nothing."""

    file: str
    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.source}"


@dataclass
class Sources:
    """Test files by path, each as its text."""

    texts: dict[str, str]
    functions: dict[Place, list[Function]] = field(default_factory=lambda: defaultdict(list))
    constants: dict[Place, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[Place, Place] = field(default_factory=dict)
    asserting: set[Place] = field(default_factory=set)
    """Functions that assert something somewhere."""
    certain: set[Place] = field(default_factory=set)
    """Functions that assert something on each path."""

    def __post_init__(self) -> None:
        self.trees = {file: ast.parse(text) for file, text in self.texts.items()}
        for file, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    self.functions[file, node.name].append(node)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    home = node.module.replace(".", "/") + ".py"
                    self.imports |= {(file, a.asname or a.name): (home, a.name) for a in node.names}
            for name, value in _bindings(tree.body):
                self.constants[file, name].append(value)
        self._grow(self.asserting, any, lambda file, f: any(self.asserts(file, n) for n in ast.walk(f)))
        self._grow(self.certain, all, lambda file, f: self.always_asserts(file, f.body))

    @classmethod
    def of_tests(cls) -> "Sources":
        return cls({str(p.relative_to(TESTS)): p.read_text(encoding="utf-8") for p in sorted(TESTS.rglob("*.py"))})

    def _grow(self, known: set[Place], how: Callable[..., bool], holds: Callable[[str, Function], bool]) -> None:
        """Add the functions for which something holds, until those that call them are in as well."""
        size = -1
        while size < len(known):
            size = len(known)
            known |= {at for at, found in self.functions.items() if how(holds(at[0], f) for f in found)}

    # -- what asserts

    def asserts(self, file: str, node: ast.AST) -> bool:
        """Whether this very node asserts, or calls what does somewhere."""
        return isinstance(node, ast.Assert) or self._is_check(file, node, self.asserting)

    def _is_check(self, file: str, node: ast.AST, known: set[Place]) -> bool:
        if not isinstance(node, ast.Call):
            return False
        name = name_of(node.func)
        if name in CHECKS or name.startswith("assert_"):
            return True
        return isinstance(node.func, ast.Name) and name not in GUARDS and self._home(file, name) in known

    def _home(self, file: str, name: str) -> Place:
        return (file, name) if (file, name) in self.functions else self.imports.get((file, name), ("", ""))

    def always_asserts(self, file: str, body: list[ast.stmt]) -> bool:
        """Whether something is asserted on each path through these statements."""
        for statement in body:
            if self._always(file, statement):
                return True
            if _leaves(statement):
                return False
        return False

    def _always(self, file: str, statement: ast.stmt) -> bool:
        always = functools.partial(self.always_asserts, file)
        match statement:
            case ast.Assert():
                return True
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.While():
                return False
            case ast.If(test=test, body=body, orelse=orelse):
                return self._calls_check(file, test) or (always(body) and (always(orelse) or _ends(orelse)))
            case ast.For(iter=values, body=body):
                return self._calls_check(file, values) or always(body)
            case ast.With(items=items, body=body):
                return any(self._calls_check(file, i) for i in items) or (not _suppresses(items) and always(body))
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                caught = all(always(h.body) or _ends(h.body) for h in handlers)
                return always(final) or (caught and (always(body) or always(orelse)))
            case ast.Match(cases=cases):
                last = cases[-1].pattern
                return isinstance(last, ast.MatchAs) and last.pattern is None and all(always(c.body) for c in cases)
        return self._calls_check(file, statement)

    def _calls_check(self, file: str, node: ast.AST) -> bool:
        return any(self._is_check(file, n, self.certain) for n in ast.walk(node))

    # -- what is never empty

    def is_sure(self, file: str, node: ast.expr | None, scope: tuple[Function, ...]) -> bool:
        """Whether an expression has at least one value, as far as its source tells."""
        sure = functools.partial(self.is_sure, file, scope=scope)
        match node:
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return any(sure(p.value) if isinstance(p, ast.Starred) else True for p in parts)
            case ast.Dict(keys=keys, values=values):
                return any(key is not None or sure(value) for key, value in zip(keys, values, strict=True))
            case ast.Constant(value=value):
                return isinstance(value, str | bytes) and bool(value)
            case ast.IfExp(body=one, orelse=other):
                return sure(one) and sure(other)
            case ast.BinOp(left=one, op=ast.Add() | ast.BitOr() | ast.Mult(), right=other):
                return sure(one) or sure(other)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return all(sure(g.iter) and not g.ifs for g in node.generators)
            case ast.Name(id=name):
                return self._is_sure_name(file, name, scope)
            case ast.Call(func=ast.Attribute(attr=name, value=owner)) if name in {"items", "keys", "values"}:
                return sure(owner)
            case ast.Call():
                return self._is_sure_call(node, sure)
        return False

    def _is_sure_call(self, call: ast.Call, sure: Callable[[ast.expr], bool]) -> bool:
        name, args = name_of(call.func), call.args
        if name in GUARDS | NEVER_EMPTY:
            return True
        match name:
            case "range":
                return _has_numbers(args)
            case "zip":
                strict = any(k.arg == "strict" and ast.unparse(k.value) == "True" for k in call.keywords)
                return bool(args) and (any if strict else all)(map(sure, args))
            case "product":
                return all(map(sure, args))
            case "map":
                return all(map(sure, args[1:]))
        return name in KEEPS_LENGTH and bool(args) and sure(args[0])

    def _is_sure_name(self, file: str, name: str, scope: tuple[Function, ...]) -> bool:
        for function in reversed(scope):
            if (values := _locals(function).get(name)) is not None:
                known = (v for v in values if v is None or name not in {name_of(n) for n in ast.walk(v)})
                return all(self.is_sure(file, value, scope) for value in known)
        if values := self.constants.get((file, name)):
            return all(self.is_sure(file, value, ()) for value in values)
        home, original = self.imports.get((file, name), ("", ""))
        return home in self.trees and self._is_sure_name(home, original, ())


def findings(sources: Sources) -> Iterator[Finding]:
    """Every assertion of these sources that may hold of nothing."""
    for file, tree in sources.trees.items():
        for path in _paths(tree):
            scope = tuple(n for n in path if isinstance(n, Function))
            if scope and (what := _what(sources, file, path[-1], scope)):
                yield Finding(file, path[-1].lineno, what, ast.unparse(path[-1]).splitlines()[0][:100])


def _what(sources: Sources, file: str, node: ast.AST, scope: tuple[Function, ...]) -> str:
    sure = functools.partial(sources.is_sure, file, scope=scope)
    match node:
        case ast.For(iter=values, body=body):
            inside = any(sources.asserts(file, n) for statement in body for n in ast.walk(statement))
            return "a loop that may have no turn" if inside and not sure(values) else ""
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            inside = any(sources.asserts(file, n) for n in ast.walk(node))
            return "a loop that may have no turn" if inside and not sure(node) else ""
        case ast.Call(func=ast.Name(id="all"), args=[values]) if (file, scope[0].name) in sources.asserting:
            return "all() of what may be none" if not sure(values) else ""
        case ast.Assert(test=test):
            return next(filter(None, (_of_none(n, sure) for n in ast.walk(test))), "")
        case ast.FunctionDef(name=name) if name.startswith("test_"):
            return "" if sources.always_asserts(file, node.body) else "a path on which nothing is asserted"
    return ""


def _of_none(node: ast.AST, sure: Callable[[ast.expr], bool]) -> str:
    """What is wrong with a part of an asserted expression."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call(func=ast.Name(id="any"), args=[values])) if not sure(values):
            return "not any() of what may be none"
        case ast.Compare(left=one, ops=[op], comparators=[other]):
            open_ends = [_collects(n) and not sure(n) for n in (one, other)]
            if isinstance(op, ast.Eq) and all(open_ends):
                return "two collections, both of which may be empty"
            smaller = open_ends[0] if isinstance(op, ast.Lt | ast.LtE) else open_ends[1]
            if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and smaller:
                return "the subset may be empty"
    return ""


def name_of(node: ast.AST) -> str:
    """The last name of `a.b.c` or `c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _collects(node: ast.AST) -> bool:
    return isinstance(node, Comprehension) or (isinstance(node, ast.Call) and name_of(node.func) in COLLECTIONS)


def _has_numbers(args: list[ast.expr]) -> bool:
    """Whether a range of constants has any; of what is no constant, that is not known."""
    try:
        return len(range(*map(ast.literal_eval, args))) > 0
    except ValueError:
        return False


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                yield name, value


@functools.cache
def _locals(function: Function) -> dict[str, list[ast.expr | None]]:
    """What each local name is bound to; `None` for what the source does not tell: arguments, parts, turns of a loop."""
    bound = defaultdict[str, list[ast.expr | None]](list)
    for node in ast.walk(function):
        match node:
            case ast.arg(arg=name):
                bound[name].append(None)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                bound[name].append(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=value):
                bound[name].append(value)
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                bound[name].append(value)
            case ast.Assign(targets=targets):
                for part in (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
                    bound[part.id].append(None)
            case ast.For(target=target) | ast.comprehension(target=target):
                for part in (n for n in ast.walk(target) if isinstance(n, ast.Name)):
                    bound[part.id].append(None)
    return bound


def _paths(node: ast.AST, above: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.AST, ...]]:
    path = (*above, node)
    yield path
    for child in ast.iter_child_nodes(node):
        yield from _paths(child, path)


def _ends(body: list[ast.stmt]) -> bool:
    """Whether these statements end in an error."""
    return bool(body) and isinstance(body[-1], ast.Raise)


def _suppresses(items: list[ast.withitem]) -> bool:
    return any(isinstance(i.context_expr, ast.Call) and name_of(i.context_expr.func) == "suppress" for i in items)


def _leaves(node: ast.AST) -> bool:
    """Whether a statement may leave the test, or the turn of the loop around it."""
    if isinstance(node, Function | ast.ClassDef | ast.Lambda):
        return False
    if isinstance(node, ast.Return | ast.Continue | ast.Break):
        return True
    inner = isinstance(node, ast.For | ast.While)
    skips = isinstance(node, ast.Call) and name_of(node.func) == "skip"
    return skips or any(
        _leaves(n) and not (inner and isinstance(n, ast.Continue | ast.Break)) for n in ast.iter_child_nodes(node)
    )
