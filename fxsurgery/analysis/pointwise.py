"""Functions of one tensor that take it entry by entry, and what is true of them.

What is true is worked out by running the function on a grid of numbers: whatever PyTorch computes counts,
with the options that the user's module has.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxsurgery.analysis.cached import fact
from fxsurgery.analysis.shapes import target_name
from fxsurgery.program import Program

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink,
    nn.Softshrink, nn.Threshold,
)  # fmt: skip
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Modules that give their input back in eval mode."""

FUNCTIONS = set(
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ celu celu_ selu selu_ gelu silu mish hardswish hardsigmoid "
    "hardtanh hardtanh_ sigmoid sigmoid_ tanh tanh_ softplus softsign logsigmoid tanhshrink hardshrink softshrink "
    "threshold threshold_ abs neg exp square sqrt erf sin cos clamp clip clamp_min clamp_max".split()
)
PASSING_FUNCTIONS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "contiguous", "clone"}

_FAR = torch.logspace(1, 6, 41)
"""Where a bound may lie: a clamp to [-20, 20] is no identity."""
_GRID = torch.cat([-_FAR, torch.linspace(-12, 12, 481), _FAR, torch.tensor([-1e-3, 0.0, 1e-3])])


@dataclass(frozen=True)
class Pointwise:
    """What is true, in eval mode, of a function f of single entries."""

    is_identity: bool
    is_idempotent: bool
    """f(f(x)) = f(x)."""
    keeps_zero: bool
    """f(0) = 0."""
    is_non_negative: bool
    """f(x) >= 0."""


def pointwise(program: Program, node: fx.Node) -> Pointwise | None:
    """What is true of the function that `node` computes of one tensor, entry by entry; `None` if it is none."""
    return _all_pointwise(program).get(node.name)


@fact
def calls_of(program: Program) -> Counter[str]:
    """How many nodes call each module, by path."""
    return Counter(str(n.target) for n in program.nodes if n.op == "call_module")


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads `node`; `None` where there are several, or none but the output."""
    readers = [reader for reader in node.users if reader.op != "output"]
    return readers[0] if len(readers) == 1 == len(node.users) else None


@fact
def _all_pointwise(program: Program) -> dict[str, Pointwise]:
    found = dict[str, Pointwise]()
    for node in program.nodes:
        if (known := _known(program, node)) is not None:
            found[node.name] = known
    return found


def _known(program: Program, node: fx.Node) -> Pointwise | None:
    inputs = node.all_input_nodes
    if not inputs or not node.args or node.args[0] is not inputs[0]:
        return None
    if node.op == "call_module":
        return _of_module(program.module(node)) if len(inputs) == 1 else None
    name = target_name(node)
    if name in PASSING_FUNCTIONS:
        return _IDENTITY  # whether it trains, a dropout may be told by another node
    if len(inputs) != 1 or name not in FUNCTIONS or getattr(node.target, "__module__", None) == "math":
        return None
    call: Callable[..., Tensor] = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
    return _tried(lambda x: call(x, *node.args[1:], **node.kwargs))


def _of_module(module: nn.Module) -> Pointwise | None:
    if isinstance(module, PASSING):
        return _IDENTITY
    return _tried(module) if type(module) in ACTIVATIONS else None


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
