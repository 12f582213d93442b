"""Which operator a module, function, method, attribute or node is: the one table of all that are declared."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import fx, nn
from torch._ops import OpOverload

from fxsurgery.errors import OperatorError
from fxsurgery.ops.catalog import OPERATORS
from fxsurgery.ops.facets import OperandArgument
from fxsurgery.ops.operator import Form, Function, Kind, Operator, Spelling
from fxsurgery.ops.rules.call import Rule, base_name
from fxsurgery.ops.rules.pointwise import pointwise
from fxsurgery.ops.spelling import spellings_of


class Registry:
    """The declared operators; it never changes: one more operator makes another registry."""

    def __init__(self, operators: Iterable[Operator]) -> None:
        self.operators: tuple[Operator, ...] = ()
        self._by_name: dict[str, Operator] = {}
        self._known: dict[Form, dict[Any, Spelling]] = {form: {} for form in get_args(Form)}
        self._types: dict[type, Spelling | None] = {}
        self._overloads: dict[int, tuple[Operator | None, Rule | None, OpOverload]] = {}
        for operator in operators:
            self._add(operator)

    def with_operator(self, operator: Operator) -> "Registry":
        """Return a registry that has `operator` as well.

        Raises:
            OperatorError: its name or one of its spellings is taken.
        """
        return Registry((*self.operators, operator))

    def _add(self, operator: Operator) -> None:
        if operator.name in self._by_name:
            raise OperatorError(f"an operator is called {operator.name!r} already; choose another name")
        for spelling in spellings_of(operator):
            taken = self._known[spelling.form].setdefault(spelling.key, spelling)
            if taken is not spelling:
                raise OperatorError(
                    f"the {spelling.form} {spelling.key!r} cannot be a spelling of {operator.name!r}: it is one of "
                    f"{taken.operator.name!r}; leave it out of one of the two"
                )
        self._by_name[operator.name] = operator
        self.operators += (operator,)

    def named(self, name: str) -> Operator:
        """Return the operator of that name.

        Raises:
            OperatorError: there is none.
        """
        if name not in self._by_name:
            raise OperatorError(f"no operator is called {name!r}; declare it, or look through `operators()`")
        return self._by_name[name]

    def spelling(self, form: Form, key: Any) -> Spelling | None:  # noqa: ANN401 -- any function
        """Return the spelling for a module type, function, or name of a method or attribute.

        A module's type counts as the nearest of its bases that is declared.
        """
        if form == "module":
            return self._of_type(key)
        try:
            return self._known[form].get(key)
        except TypeError:  # a callable that cannot be hashed is none of ours
            return None

    def _of_type(self, kind: type) -> Spelling | None:
        if kind not in self._types:
            known = self._known["module"]
            self._types[kind] = next((known[base] for base in kind.__mro__ if base in known), None)
        return self._types[kind]

    def aten(self, op: OpOverload) -> tuple[Operator | None, Rule | None, OpOverload]:
        """Return the operator of an ATen operation, how labels pass through it, and the operation."""
        # Hashing an overload runs Python code, and every operation of an analysis is looked up several times.
        if (found := self._overloads.get(id(op))) is None:
            declared = _operator(self._known["aten"].get(base_name(op)))
            entrywise = torch.Tag.pointwise in op.tags if declared is None else declared.is_entrywise
            rule = declared.rule if declared is not None else None
            found = self._overloads[id(op)] = (declared, pointwise if rule is None and entrywise else rule, op)
        return found

    def spellings(self, operator: Operator) -> tuple[Spelling, ...]:
        """Return every spelling of an operator."""
        found = (s for table in self._known.values() for s in table.values())
        return tuple(s for s in found if s.operator is operator)


_DECLARED = Registry(OPERATORS)
_LOCK = threading.RLock()
_VERSION = 0


def _put(registry: Registry) -> None:
    global _DECLARED, _VERSION
    _DECLARED, _VERSION = registry, _VERSION + 1


def version() -> int:
    """Return a number that is another after each declaration, for what keeps facts that rest on the registry."""
    return _VERSION


def declare(operator: Operator) -> None:
    """Add an operator for the rest of this process; jobs in other processes declare it in theirs.

    Raises:
        OperatorError: its name or one of its spellings is taken.
    """
    with _LOCK:
        _put(_DECLARED.with_operator(operator))


@contextmanager
def declared(operator: Operator) -> Iterator[Operator]:
    """Add an operator while the block runs.

    Raises:
        OperatorError: its name or one of its spellings is taken.

    Example:
        >>> def swish(x):
        ...     return x * x.sigmoid()
        >>> with declared(Operator(name="swish", kind=Kind.POINTWISE, functions=(swish,))):
        ...     of_function(swish).name
        'swish'
        >>> of_function(swish) is None
        True
    """
    with _LOCK:
        before = _DECLARED
        _put(before.with_operator(operator))
        try:
            yield operator
        finally:
            _put(before)


def operators(kind: Kind | None = None) -> tuple[Operator, ...]:
    """Return the declared operators, or those of a kind."""
    return tuple(o for o in _DECLARED.operators if kind is None or o.kind is kind)


def named(name: str) -> Operator:
    """Return the operator of that name.

    Raises:
        OperatorError: there is none.
    """
    return _DECLARED.named(name)


def spellings(operator: Operator) -> tuple[Spelling, ...]:
    """Return every spelling of an operator."""
    return _DECLARED.spellings(operator)


def function_of(operator: Operator) -> Function | None:
    """Return a function that computes `operator` and overwrites nothing; `None` where it is no function."""
    plain = (s.key for s in spellings(operator) if s.form == "function" and not s.in_place and not s.reflected)
    return next(plain, None)


def of_module(module: nn.Module) -> Operator | None:
    """Return the operator that `module`, or the nearest base of its type that is declared, computes."""
    return _operator(_DECLARED.spelling("module", type(module)))


def spelling_of_method(name: str) -> Spelling | None:
    """Return how a tensor's method of that name writes an operator."""
    return _DECLARED.spelling("method", name)


def of_function(function: Callable[..., Any]) -> Operator | None:
    """Return the operator of a function."""
    return _operator(_DECLARED.spelling("function", function))


def of_method(name: str) -> Operator | None:
    """Return the operator of a tensor's method."""
    return _operator(_DECLARED.spelling("method", name))


def of_attribute(name: str) -> Operator | None:
    """Return the operator that reading a tensor's attribute computes."""
    return _operator(_DECLARED.spelling("attribute", name))


def of_aten(op: OpOverload) -> Operator | None:
    """Return the operator that an ATen operation, or one of another library, computes."""
    return _DECLARED.aten(op)[0]


def rule_of(op: OpOverload) -> Rule | None:
    """Return how labels pass through an ATen operation; `None` where nothing is known of it."""
    return _DECLARED.aten(op)[1]


def of(node: fx.Node, module: nn.Module | None = None) -> Operator | None:
    """Return the operator that `node` calls.

    Args:
        node: any node.
        module: what it calls, where it calls a module.
    """
    return _operator(spelling_of(node, module))


def spelling_of(node: fx.Node, module: nn.Module | None = None) -> Spelling | None:
    """Return how `node` writes the operator that it calls; `None` where that is not declared.

    Args:
        node: any node.
        module: what it calls, where it calls a module.
    """
    if node.op == "call_module":
        return None if module is None else _DECLARED.spelling("module", type(module))
    return spelling_of_target(node.target, node.args) if node.op in {"call_function", "call_method"} else None


def spelling_of_target(target: object, args: Sequence[object] = ()) -> Spelling | None:
    """Return how a function, or a method by its name, writes an operator; of `getattr`, the attribute that it reads."""
    if isinstance(target, str):
        return _DECLARED.spelling("method", target)
    if target is getattr:
        return _DECLARED.spelling("attribute", args[1]) if len(args) > 1 else None
    return _DECLARED.spelling("function", target)


def overwritten(node: fx.Node, module: nn.Module | None = None) -> Any:  # noqa: ANN401 -- an argument of any type
    """Return the first argument of `node` where it is overwritten with what the node gives, else `None`."""
    if not node.args or node.op not in {"call_module", "call_function", "call_method"}:
        return None
    if node.op == "call_module":
        return node.args[0] if getattr(module, "inplace", False) else None
    spelling = spelling_of(node)
    marked = spelling.in_place if spelling is not None else _is_marked(node)
    return node.args[0] if marked or node.kwargs.get("inplace") is True else None


def _is_marked(node: fx.Node) -> bool:
    """Whether the name of what is called says that it overwrites, as PyTorch's names do."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def argument(node: fx.Node, module: nn.Module | None, asked: OperandArgument | None) -> Any:  # noqa: ANN401
    """Return an argument of what `node` calls: a module's attribute, or what a call was given.

    Args:
        node: the node.
        module: what it calls, where it calls a module.
        asked: the argument; `None`, of which there is no value, gives `None`.
    """
    if asked is None:
        return None
    return asked.of_module(module) if module is not None else asked.of_node(node)


def _operator(spelling: Spelling | None) -> Operator | None:
    return None if spelling is None else spelling.operator


__all__ = [
    "Kind",
    "Registry",
    "argument",
    "declare",
    "declared",
    "function_of",
    "named",
    "of",
    "of_aten",
    "of_attribute",
    "of_function",
    "of_method",
    "of_module",
    "operators",
    "overwritten",
    "rule_of",
    "spelling_of",
    "spelling_of_method",
    "spelling_of_target",
    "spellings",
    "version",
]
