"""Finds where a text of the package quotes an error of somebody else, which may have no words."""

import ast
from collections.abc import Iterator

from raised import Function, Source, name_of, names_of, paths


def unguarded(source: Source) -> Iterator[str]:
    """Places in texts where the words of a foreign error stand bare, which leaves a hole where it has none."""
    for module, tree in source.trees.items():
        for path in paths(tree):
            if not isinstance(path[-1], ast.JoinedStr):
                continue
            for value in (v for v in path[-1].values if isinstance(v, ast.FormattedValue) and v.conversion == -1):
                if (name := _words_of(value.value)) in _foreign(path, source.kinds):
                    yield f"{module}:{value.lineno} {{{ast.unparse(value.value)}}} of {name}"


def _words_of(node: ast.expr) -> str | None:
    """The name whose `str` an expression is, or a piece of it."""
    if isinstance(node, ast.Name):
        return node.id
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and name_of(n.func) == "str" and n.args]
    return name_of(calls[0].args[0]) if calls else None


def _foreign(path: list[ast.AST], kinds: frozenset[str]) -> set[str]:
    """Names of errors in reach that may say nothing: caught ones that are not ours, and parameters."""
    found = set[str]()
    for node in path:
        if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
            (found.discard if names_of(node.type) <= kinds else found.add)(node.name)
        if isinstance(node, Function):
            params = [a for a in (*node.args.args, *node.args.kwonlyargs) if a.annotation is not None]
            found |= {
                a.arg
                for a in params
                if name_of(a.annotation).endswith(("Exception", "Error")) and not names_of(a.annotation) <= kinds
            }
    return found
