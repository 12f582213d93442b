"""Registry of operators: finds the operator of a module, function, method, attribute or node."""

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
    """An immutable set of operators; `with_operator` returns a new registry."""

    def __init__(self, operators: Iterable[Operator]) -> None:
        self.operators: tuple[Operator, ...] = ()
        self._by_name: dict[str, Operator] = {}
        self._known: dict[Form, dict[Any, Spelling]] = {form: {} for form in get_args(Form)}
        self._types: dict[type, Spelling | None] = {}
        self._overloads: dict[int, tuple[Operator | None, Rule | None, OpOverload]] = {}
        for operator in operators:
            self._add(operator)

    def with_operator(self, operator: Operator) -> "Registry":
        """Return a registry extended by `operator`.

        Raises:
            OperatorError: its name or one of its spellings is taken.
        """
        return Registry((*self.operators, operator))

    def _add(self, operator: Operator) -> None:
        if operator.name in self._by_name:
            raise OperatorError(f"the operator name {operator.name!r} is taken; choose another name")
        for spelling in spellings_of(operator):
            taken = self._known[spelling.form].setdefault(spelling.key, spelling)
            if taken is not spelling:
                raise OperatorError(
                    f"the {spelling.form} {spelling.key!r} cannot be a spelling of {operator.name!r}: it already "
                    f"belongs to {taken.operator.name!r}; remove it from one of the two"
                )
        self._by_name[operator.name] = operator
        self.operators += (operator,)

    def named(self, name: str) -> Operator:
        """Return the operator with the given name.

        Raises:
            OperatorError: there is none.
        """
        if name not in self._by_name:
            raise OperatorError(f"no operator is named {name!r}; declare it, or look it up in `operators()`")
        return self._by_name[name]

    def spelling(self, form: Form, key: Any) -> Spelling | None:  # noqa: ANN401 -- any function
        """Return the spelling for a module type, a function, or the name of a method or attribute; None without one.

        A module type without a declaration counts as the nearest declared base class.
        """
        if form == "module":
            return self._of_type(key)
        try:
            return self._known[form].get(key)
        except TypeError:  # an unhashable callable is never declared
            return None

    def _of_type(self, kind: type) -> Spelling | None:
        if kind not in self._types:
            known = self._known["module"]
            self._types[kind] = next((known[base] for base in kind.__mro__ if base in known), None)
        return self._types[kind]

    def aten(self, op: OpOverload) -> tuple[Operator | None, Rule | None, OpOverload]:
        """Return the operator of an ATen operation, its label rule, and the operation."""
        # Hashing an overload runs Python code, and an analysis looks up every operation several times.
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
    """Return a number that changes with each declaration, for caches of facts that depend on the registry."""
    return _VERSION


def declare(operator: Operator) -> None:
    """Add an operator for the rest of this process; jobs in other processes must declare it themselves.

    Args:
        operator: the operator.

    Raises:
        OperatorError: its name or one of its spellings is taken.
    """
    with _LOCK:
        _put(_DECLARED.with_operator(operator))


@contextmanager
def declared(operator: Operator) -> Iterator[Operator]:
    """Context manager that adds an operator while the block runs.

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
    """Return the declared operators, optionally only those of one kind."""
    return tuple(o for o in _DECLARED.operators if kind is None or o.kind is kind)


def named(name: str) -> Operator:
    """Return the operator with the given name.

    Raises:
        OperatorError: there is none.
    """
    return _DECLARED.named(name)


def spellings(operator: Operator) -> tuple[Spelling, ...]:
    """Return every spelling of an operator."""
    return _DECLARED.spellings(operator)


def function_of(operator: Operator) -> Function | None:
    """Return a function that computes `operator` without writing to its inputs; None without one."""
    plain = (s.key for s in spellings(operator) if s.form == "function" and not s.in_place and not s.reflected)
    return next(plain, None)


def of_module(module: nn.Module) -> Operator | None:
    """Return the operator of `module`, found by its type or the nearest declared base class; None without one."""
    return _operator(_DECLARED.spelling("module", type(module)))


def spelling_of_method(name: str) -> Spelling | None:
    """Return the spelling of a tensor method; None without one."""
    return _DECLARED.spelling("method", name)


def of_function(function: Callable[..., Any]) -> Operator | None:
    """Return the operator of a function; None without one."""
    return _operator(_DECLARED.spelling("function", function))


def of_method(name: str) -> Operator | None:
    """Return the operator of a tensor method; None without one."""
    return _operator(_DECLARED.spelling("method", name))


def of_attribute(name: str) -> Operator | None:
    """Return the operator of a tensor attribute; None without one."""
    return _operator(_DECLARED.spelling("attribute", name))


def of_aten(op: OpOverload) -> Operator | None:
    """Return the operator of an ATen operation or an operation of another library; None without one."""
    return _DECLARED.aten(op)[0]


def rule_of(op: OpOverload) -> Rule | None:
    """Return the label rule of an ATen operation; None if nothing is known about it."""
    return _DECLARED.aten(op)[1]


def of(node: fx.Node, module: nn.Module | None = None) -> Operator | None:
    """Return the operator that `node` calls; None without one.

    Args:
        node: any node.
        module: the module that the node calls; None for other nodes.
    """
    return _operator(spelling_of(node, module))


def spelling_of(node: fx.Node, module: nn.Module | None = None) -> Spelling | None:
    """Return the spelling by which `node` calls an operator; None without one.

    Args:
        node: any node.
        module: the module that the node calls; None for other nodes.
    """
    if node.op == "call_module":
        return None if module is None else _DECLARED.spelling("module", type(module))
    return spelling_of_target(node.target, node.args) if node.op in {"call_function", "call_method"} else None


def spelling_of_target(target: object, args: Sequence[object] = ()) -> Spelling | None:
    """Return the spelling of a function or of a method name; for `getattr`, that of the attribute in `args`."""
    if isinstance(target, str):
        return _DECLARED.spelling("method", target)
    if target is getattr:
        return _DECLARED.spelling("attribute", args[1]) if len(args) > 1 else None
    return _DECLARED.spelling("function", target)


def overwritten(node: fx.Node, module: nn.Module | None = None) -> Any:  # noqa: ANN401 -- an argument of any type
    """Return the first argument of `node` if the call writes to it, else None."""
    if not node.args or node.op not in {"call_module", "call_function", "call_method"}:
        return None
    if node.op == "call_module":
        return node.args[0] if getattr(module, "inplace", False) else None
    spelling = spelling_of(node)
    marked = spelling.in_place if spelling is not None else _is_marked(node)
    return node.args[0] if marked or node.kwargs.get("inplace") is True else None


def _is_marked(node: fx.Node) -> bool:
    """Return True if the name of the target marks an in-place operation, as PyTorch's names do."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def argument(node: fx.Node, module: nn.Module | None, parameter: OperandArgument | None) -> Any:  # noqa: ANN401
    """Return the value of an argument of the operator that `node` calls.

    Args:
        node: the node.
        module: the module that the node calls, whose attribute is read; None for other nodes.
        parameter: the argument; None returns None.
    """
    if parameter is None:
        return None
    return parameter.of_module(module) if module is not None else parameter.of_node(node)


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
