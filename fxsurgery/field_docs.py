"""The texts under the fields of dataclasses, as their source has them."""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any


def docs_of(owner: type[Any]) -> Mapping[str, str]:
    """Return the text under each field of a dataclass and of those that it extends; a field without one has none.

    Example:
        >>> from fxsurgery.budget import Spend
        >>> docs_of(Spend)["epochs"]
        'Passes over the training data, counted over every candidate, the warm-up among them.'
    """
    found = dict[str, str]()
    for kind in reversed(owner.__mro__):
        if is_dataclass(kind):
            found |= {name: text for name, text in own_docs(kind).items() if text or name not in found}
    return found


@functools.cache
def own_docs(owner: type[Any]) -> Mapping[str, str]:
    """Return the text under each field that a class has in its own body; empty if there is none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    found = dict[str, str]()
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
            found[ast.unparse(statement.target)] = _text(after)
    return found


def _text(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return inspect.cleandoc(str(statement.value.value))
    return ""


def summary(text: str) -> str:
    """Return the first paragraph of a text, in one line."""
    return one_line(text.partition("\n\n")[0])


def one_line(text: str) -> str:
    """Return a text without its line breaks."""
    return re.sub(r"\s+", " ", text)
