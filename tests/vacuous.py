"""Finds assertions that may hold of nothing: in a loop without turns, about none, or on one path of several.

The sources are read, not run. What is asserted of each of several values needs values that are known to be there: a
literal, a range of constants, a name for either, or `nonempty(...)`, which fails without any. And each test asserts
something whatever path it takes.
"""

import ast
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sources import GUARDS, Function, Sources, name_of

KEEPS_LENGTH = {"enumerate", "sorted", "reversed", "list", "tuple", "set", "frozenset", "dict", "iter"}
"""Functions whose result is empty only where their first argument is."""
NEVER_EMPTY = {"split", "modules", "named_modules"}
"""Methods that always give something: a text has one part at least, and a module is one of its own modules."""
VIEWS = {"items", "keys", "values"}

Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
Sure = Callable[[ast.expr], bool]


@dataclass(frozen=True)
class Finding:
    """An assertion that may hold of nothing."""

    file: str
    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: {self.source}"


def findings(sources: Sources) -> Iterator[Finding]:
    """Every assertion of these sources that may hold of nothing."""
    for file, tree in sources.trees.items():
        for node, scope in _in_functions(tree):
            if what := _fault(sources, file, node, scope):
                yield Finding(file, node.lineno, what, ast.unparse(node).splitlines()[0][:100])


def _in_functions(node: ast.AST, scope: tuple[Function, ...] = ()) -> Iterator[tuple[ast.AST, tuple[Function, ...]]]:
    for child in ast.iter_child_nodes(node):
        inner = (*scope, child) if isinstance(child, Function) else scope
        if inner:
            yield child, inner
        yield from _in_functions(child, inner)


def _fault(sources: Sources, file: str, node: ast.AST, scope: tuple[Function, ...]) -> str:
    sure = Certainty(sources, file, scope).of
    match node:
        case ast.For(iter=values, body=body):
            inside = any(sources.asserts(file, statement) for statement in body)
            return "a loop that may have no turn" if inside and not sure(values) else ""
        case ast.Expr(value=(ast.ListComp() | ast.SetComp() | ast.DictComp()) as loop):
            return "a loop that may have no turn" if sources.asserts(file, loop) and not sure(loop) else ""
        case ast.Call(func=ast.Name(id="all"), args=[values]) if (file, scope[0].name) in sources.asserting:
            return "all() of what may be none" if not sure(values) else ""
        case ast.Assert(test=test):
            return next(filter(None, (_of_none(n, sure) for n in ast.walk(test))), "")
        case ast.FunctionDef(name=name, body=body) if name.startswith("test_"):
            return "" if sources.always_asserts(file, body) else "a path on which nothing is asserted"
    return ""


def _of_none(node: ast.AST, sure: Sure) -> str:
    """What is wrong with a part of an asserted expression."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call(func=ast.Name(id="any"), args=[values])) if not sure(values):
            return "not any() of what may be none"
        case ast.Compare(left=one, ops=[op], comparators=[other]):
            one_open, other_open = (_collects(n) and not sure(n) for n in (one, other))
            if isinstance(op, ast.Eq) and one_open and other_open:
                return "two collections, both of which may be empty"
            smaller_open = one_open if isinstance(op, ast.Lt | ast.LtE) else other_open
            if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and smaller_open:
                return "the subset may be empty"
    return ""


def _collects(node: ast.AST) -> bool:
    return isinstance(node, Comprehension) or (isinstance(node, ast.Call) and name_of(node) in KEEPS_LENGTH | {"map"})


@dataclass(frozen=True)
class Certainty:
    """Tells of expressions at a place whether they have at least one value, as far as their source goes."""

    sources: Sources
    file: str
    scope: tuple[Function, ...]
    """The functions around that place, from outside in."""

    def of(self, node: ast.expr | None) -> bool:
        match node:
            case ast.List() | ast.Tuple() | ast.Set() | ast.Dict() | ast.Constant():
                found = self._literal(node)
            case ast.IfExp(body=one, orelse=other):
                found = self.of(one) and self.of(other)
            case ast.BinOp(left=one, op=ast.Add() | ast.BitOr() | ast.Mult(), right=other):
                found = self.of(one) or self.of(other)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                found = all(self.of(g.iter) and not g.ifs for g in node.generators)
            case ast.Name(id=name):
                found = self._name(name)
            case ast.Call():
                found = self._call(node)
            case _:
                found = False
        return found

    def _literal(self, node: ast.expr) -> bool:
        match node:
            case ast.Dict(keys=keys, values=values):
                return any(key is not None or self.of(value) for key, value in zip(keys, values, strict=True))
            case ast.Constant(value=value):
                return isinstance(value, str | bytes) and bool(value)
        return any(self.of(p.value) if isinstance(p, ast.Starred) else True for p in node.elts)

    def _call(self, call: ast.Call) -> bool:
        name, args = name_of(call), call.args
        match name:
            case "range":
                return self._has_numbers(args)
            case "zip":
                strict = any(k.arg == "strict" and ast.unparse(k.value) == "True" for k in call.keywords)
                return bool(args) and (any if strict else all)(map(self.of, args))
            case "product":
                return all(map(self.of, args))
            case "map":
                return all(map(self.of, args[1:]))
        if name in VIEWS and isinstance(call.func, ast.Attribute):
            return self.of(call.func.value)
        return name in GUARDS | NEVER_EMPTY or (name in KEEPS_LENGTH and bool(args) and self.of(args[0]))

    def _has_numbers(self, args: list[ast.expr]) -> bool:
        """Whether a range of constants has any; of what is no constant, that is not known."""
        known = [self.sources.constants.get((self.file, name_of(arg)), [arg])[-1] for arg in args]
        try:
            return len(range(*map(ast.literal_eval, known))) > 0
        except ValueError:
            return False

    def _name(self, name: str) -> bool:
        for function in reversed(self.scope):
            if (values := _locals(function).get(name)) is not None:
                known = (v for v in values if v is None or name not in {name_of(n) for n in ast.walk(v)})
                return all(map(self.of, known))
        if values := self.sources.constants.get((self.file, name)):
            return all(map(Certainty(self.sources, self.file, ()).of, values))
        home, original = self.sources.imports.get((self.file, name), ("", ""))
        return home in self.sources.trees and Certainty(self.sources, home, ())._name(original)


@functools.cache
def _locals(function: Function) -> dict[str, list[ast.expr | None]]:
    """What each local name is bound to; `None` for what the source does not tell: arguments, parts, turns of a loop."""
    bound = defaultdict[str, list[ast.expr | None]](list)
    for node in ast.walk(function):
        match node:
            case ast.arg(arg=name):
                bound[name].append(None)
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
                | ast.NamedExpr(target=ast.Name(id=name), value=value)
            ):
                bound[name].append(value)
            case ast.Assign() | ast.For() | ast.comprehension():
                for part in _targets(node):
                    bound[part].append(None)
    return bound


def _targets(node: ast.Assign | ast.For | ast.comprehension) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
