"""Properties of pointwise functions of one tensor.

The properties are found by running the function on a grid of numbers, as PyTorch computes it with the options of the
user's module.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxsurgery.analysis.cached import cached
from fxsurgery.program import Program

_FAR = torch.logspace(1, 6, 41)
"""Candidates for bounds: a clamp to [-20, 20] is not the identity."""
_GRID = torch.cat([-_FAR, torch.linspace(-12, 12, 481), _FAR, torch.tensor([-1e-3, 0.0, 1e-3])])


@dataclass(frozen=True)
class Pointwise:
    """Properties of a pointwise function f in eval mode."""

    is_identity: bool
    is_idempotent: bool
    """f(f(x)) = f(x)."""
    keeps_zero: bool
    """f(0) = 0."""
    is_non_negative: bool
    """f(x) >= 0."""


def pointwise(program: Program, node: fx.Node) -> Pointwise | None:
    """Return the properties of the pointwise function of one tensor that `node` computes; `None` if it is not one."""
    return _all_pointwise(program).get(node.name)


@cached
def calls_of(program: Program) -> Counter[str]:
    """Return the number of nodes that call each module, by path."""
    return Counter(str(n.target) for n in program.nodes if n.op == "call_module")


def only_reader(node: fx.Node) -> fx.Node | None:
    """Return the only reader of `node`; `None` if there are several, or if it is the output."""
    readers = [reader for reader in node.users if reader.op != "output"]
    return readers[0] if len(readers) == 1 == len(node.users) else None


@cached
def _all_pointwise(program: Program) -> dict[str, Pointwise]:
    found = dict[str, Pointwise]()
    for node in program.nodes:
        if (known := _known(program, node)) is not None:
            found[node.name] = known
    return found


def _known(program: Program, node: fx.Node) -> Pointwise | None:
    inputs, operator = node.all_input_nodes, program.operator(node)
    if operator is None or operator.role is None or not inputs or not node.args or node.args[0] is not inputs[0]:
        return None
    is_module = node.op == "call_module"
    if operator.role == "identity":  # whether it trains, another node may tell a function
        return _IDENTITY if len(inputs) == 1 or not is_module else None
    if len(inputs) != 1 or (is_module and not operator.is_exactly(program.module(node))):
        return None
    if is_module:
        return _tried(program.module(node))
    call: Callable[..., Tensor] = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
    return _tried(lambda x: call(x, *node.args[1:], **node.kwargs))


_IDENTITY = Pointwise(is_identity=True, is_idempotent=True, keeps_zero=True, is_non_negative=False)


def _tried(function: Callable[[Tensor], Tensor]) -> Pointwise:
    with torch.no_grad():
        once = function(_GRID.clone())
        twice = function(once.clone())
    return Pointwise(
        is_identity=_near(once, _GRID),
        is_idempotent=_near(twice, once),
        keeps_zero=bool(once[-2] == 0),  # the grid ends with 0 between two others
        is_non_negative=bool((once >= 0).all()),
    )


def _near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-7, equal_nan=True)
