"""One small network for each way to write an operator, and what the package makes of it.

    image -> convolution -> OPERATOR -> convolution -> ReLU -> mean -> linear        where the shape stays
    image -> convolution -> OPERATOR -> flatten -> linear                            otherwise

The arguments are tried out: the first that the operator takes. What wants others says so in `ARGUMENTS`.
"""

import operator as python
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.structure import structure
from fxsurgery.edit import Editor
from fxsurgery.errors import SurgeryError
from fxsurgery.ops import random, registry
from fxsurgery.ops.operator import Kind, Operator, Spelling
from fxsurgery.passes import PASSES, AddPool, Deepen, RemovePool
from fxsurgery.program import Program

CHANNELS, EXTENT = 4, 6
OTHER = object()
"""Stands for a second map."""


@dataclass(frozen=True)
class Given:
    """Arguments of an operator after its first input."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    made_of: dict[str, Any] | None = None
    """Constructor arguments of its module if they differ from `args`."""
    listed: bool = False
    """Whether its inputs come in a list."""


PATTERNS = (
    Given(),
    Given((OTHER,)),
    Given((2,)),
    Given((1,)),
    Given((OTHER,), listed=True),
    Given((0, 1)),
    Given(((2, CHANNELS, EXTENT * EXTENT),)),
)

_IN_EVAL = Given((0.5, False), made_of={"p": 0.5})
ARGUMENTS = {
    **{operator.name: _IN_EVAL for operator in random.DROPOUTS},
    "threshold": Given((0.1, 0.5)),
    **dict.fromkeys(("softmax", "softmin"), Given((1,), made_of={"dim": 1})),
    "interpolate": Given((), {"scale_factor": 2}, made_of={"scale_factor": 2}),
    "repeat_interleave": Given((2, 1)),
    "cat": Given((OTHER,), {"dim": 1}, listed=True),
    "transpose": Given((2, 3)),
    "movedim": Given((2, 3)),
    "clamp": Given((0.0, 1.0)),
    "getitem": Given(((slice(None), slice(0, 2)),)),
    "unflatten": Given((1, (2, 2))),
    "narrow": Given((1, 0, 2)),
    "select": Given((1, 0)),
    "permute": Given(((0, 1, 3, 2),)),
    "flatten": Given((1,)),
    "roll": Given((1, 2)),
    "flip": Given(((2,),)),
    "repeat": Given((1, 1, 2, 1)),
    **dict.fromkeys(("split", "unsafe_split", "chunk", "unsafe_chunk", "tensor_split"), Given((2, 1))),
    **dict.fromkeys(("split_with_sizes", "unsafe_split_with_sizes"), Given(([2, 2], 1))),
    **dict.fromkeys(("sum", "mean", "amax"), Given(((2, 3),))),
    **dict.fromkeys(("addcdiv", "addcmul"), Given((OTHER, OTHER))),
    "lerp": Given((OTHER, 0.5)),
    "pad": Given(((1, 1, 1, 1),)),
    "broadcast_to": Given(((2, CHANNELS, EXTENT, EXTENT),)),
    "diagonal": Given((0, 2, 3)),
    **dict.fromkeys(("argmax", "argmin", "any", "all", "count_nonzero", "argsort"), Given((1,))),
    "aminmax": Given((), {"dim": 1}),
    **{f"lp_pool{rank}d": Given((2, 2)) for rank in (1, 2, 3)},
}

EXCEPT = {
    "takes integers": "polygamma bitwise_not bitwise_and bitwise_xor bitwise_or bitwise_left_shift "
    "bitwise_right_shift gcd lcm one_hot",
    "takes a condition or a mask": "masked_fill where masked_scatter masked_select",
    "takes indices": "embedding embedding_bag index_select gather index_put take take_along_dim scatter scatter_add "
    "scatter_reduce index_add index_copy index_fill index_reduce select_scatter diagonal_scatter as_strided_scatter "
    "put max_unpool1d max_unpool2d max_unpool3d grid_sample searchsorted bucketize isin affine_grid setitem",
    "takes matrices or vectors": "mm addmm bmm baddbmm addbmm addmv addr mv dot vdot outer chain_matmul kron t diag "
    "cartesian_prod block_diag trace",
    "has parameters, see PARAMETRIC": "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "batch_norm instance_norm layer_norm rms_norm group_norm prelu bilinear multi_head_attention transformer lstm gru "
    "rnn lstm_cell gru_cell rnn_cell",
    "gives something else by each name": "to",
    "joins batches": "vstack",
    "sizes or an equation lead": "as_strided resize resize_as einsum tensordot col2im meshgrid broadcast_tensors "
    "ravel diagflat imag nonzero argwhere unique unique_consecutive dist histc bincount",
    "draws": "bernoulli multinomial normal fractional_max_pool2d fractional_max_pool3d "
    "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices",
}
"""Operators that this network cannot hold, by the reason."""


LEFT_OUT = {F.upsample, F.upsample_nearest, F.upsample_bilinear}
"""Functions that warn of their age."""


def compared(operator: Operator) -> list[Spelling]:
    """Return the spellings of an operator that a graph has: of `__add__` capture makes `operator.add`."""
    return [
        s
        for s in registry.spellings(operator)
        if s.form != "aten" and not str(s.key).startswith("__") and s.key not in LEFT_OUT
    ]


def networks(operator: Operator) -> Iterator[tuple[Spelling, Program]]:
    """Yield a program for each spelling that takes what the first one takes and gives the same."""
    spellings, wanted, given = compared(operator), None, None
    order = sorted(spellings, key=lambda s: (s.reflected, s.form == "module", s.in_place, s.form == "attribute"))
    for pattern in (ARGUMENTS[operator.name],) if operator.name in ARGUMENTS else PATTERNS:
        if (wanted := _result(order[0], pattern)) is not None:
            given = pattern
            break
    if given is None or wanted is None:
        return
    for spelling in order:
        result = _result(spelling, given)
        if result is None or (result.shape, result.dtype) != (wanted.shape, wanted.dtype):
            continue
        if torch.equal(result.float().nan_to_num(), wanted.float().nan_to_num()):
            yield spelling, _program(spelling, given, wanted)


def facts(program: Program) -> dict[str, Any]:
    """Return what passes see of a program."""
    known = structure(program)
    price = cost(program)
    found: dict[str, Any] = {
        "groups": [(group.name, group.units.tolist()) for group in known.groups],
        "inexact": sorted(known.inexact),
        "macs": price.macs,
        "unknown": price.unknown_macs,
    }
    for kind in PASSES:
        candidates = {str(candidate): candidate for candidate in kind.candidates(program)}
        found[kind.name] = list(candidates)
        here = (text for text in candidates if "'op'" in text)
        found[f"refusals of {kind.name}"] = {text: _refusals(program, candidates[text]) for text in here}
    for asked in (Deepen("op"), AddPool("op"), RemovePool("op")):
        found[f"asked: {asked}"] = _refusals(program, asked)
    return found


def _refusals(program: Program, asked: Any) -> list[str]:
    edit = Editor(program)
    try:
        asked.rewrite(edit)
    except SurgeryError as error:
        return [f"{type(error).__name__}: {error}"]
    return [f"{refusal.node}: {refusal.reason}" for refusal in edit.refusals]


def _rank(operator: Operator) -> int:
    return operator.rank or 2


def _values(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, CHANNELS) + (EXTENT,) * rank
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def _module(spelling: Spelling, given: Given) -> nn.Module:
    if given.made_of is not None:
        return spelling.key(**given.made_of).eval()
    return spelling.key(*(a for a in given.args if a is not OTHER)).eval()


def _result(spelling: Spelling, given: Given) -> Tensor | None:
    """Return the result of a spelling; None if it rejects the arguments or returns no tensor."""
    first, second = _values(_rank(spelling.operator))
    others = [second if a is OTHER else a for a in given.args]
    inputs: list[Any] = [[first, *others]] if given.listed else [first, *others]
    if spelling.reflected:
        inputs[:2] = inputs[1::-1]
    try:
        with torch.no_grad():
            match spelling.form:
                case "module":
                    tensors = [x for x in inputs if isinstance(x, Tensor)]
                    out = _module(spelling, given)(*tensors)
                case "method":
                    out = getattr(inputs[0], spelling.key)(*inputs[1:], **given.kwargs)
                case "attribute":
                    out = getattr(inputs[0], spelling.key) if len(inputs) == 1 else None
                case _:
                    out = spelling.key(*inputs, **given.kwargs)
    except (TypeError, RuntimeError, ValueError, AttributeError, IndexError, NotImplementedError, AssertionError):
        return None
    out = out[0] if isinstance(out, (tuple, list)) and len(out) else out
    return out if isinstance(out, Tensor) and not out.is_complex() and out.dim() > 1 and len(out) == 2 else None


def _program(spelling: Spelling, given: Given, wanted: Tensor) -> Program:
    rank = _rank(spelling.operator)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    root, graph = nn.Module(), fx.Graph()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        root.first, root.second = conv(3, CHANNELS, 3, padding=1), conv(3, CHANNELS, 3, padding=1)
        keeps = wanted.shape == _values(rank)[0].shape
        root.after = conv(CHANNELS, CHANNELS, 3, padding=1) if keeps else nn.Identity()
        root.head = nn.Linear(CHANNELS if keeps else wanted[0].numel(), 5)
    root.act = nn.ReLU()
    image = graph.placeholder("image")
    x = graph.call_module("first", (image,))
    y = graph.call_module("second", (image,)) if OTHER in given.args else None
    op = _node(graph, root, spelling, given, (x, y))
    if _gives_several(spelling, given):
        op = graph.call_function(python.getitem, (op, 0))
    if wanted.dtype != torch.float32:
        op = graph.call_method("float", (op,))
    if keeps:
        z = graph.call_module("act", (graph.call_module("after", (op,)),))
        z = graph.call_function(torch.mean, (z, list(range(2, rank + 2))))
    else:
        z = graph.call_function(torch.flatten, (op, 1))
    graph.output(graph.call_module("head", (z,)))
    if not keeps:
        del root.after, root.act
    if y is None:
        del root.second
    module = fx.GraphModule(root, graph).eval()
    shape = (2, 3) + (EXTENT,) * rank
    return Program(module, (torch.rand(shape, generator=torch.Generator().manual_seed(1)),))


def _node(graph: fx.Graph, root: nn.Module, spelling: Spelling, given: Given, maps: tuple[Any, Any]) -> fx.Node:
    others = tuple(maps[1] if a is OTHER else a for a in given.args)
    inputs = ([maps[0], *others],) if given.listed else (maps[0], *others)
    if spelling.reflected:
        inputs = (inputs[1], inputs[0], *inputs[2:])
    if spelling.form == "module":
        root.op = _module(spelling, given)
        nodes = tuple(i for i in inputs if isinstance(i, fx.Node))
        return graph.create_node("call_module", "op", nodes, name="op")
    if spelling.form == "attribute":
        return graph.create_node("call_function", getattr, (inputs[0], spelling.key), name="op")
    return graph.create_node(f"call_{spelling.form}", spelling.key, inputs, dict(given.kwargs), name="op")


def _gives_several(spelling: Spelling, given: Given) -> bool:
    first, second = _values(_rank(spelling.operator))
    others = [second if a is OTHER else a for a in given.args]
    inputs = [[first, *others]] if given.listed else [first, *others]
    if spelling.form in {"module", "attribute"}:
        return False
    call = getattr(inputs[0], spelling.key) if spelling.form == "method" else spelling.key
    with torch.no_grad():
        out = call(*(inputs[1:] if spelling.form == "method" else inputs), **given.kwargs)
    return isinstance(out, (tuple, list))


def with_several_spellings() -> list[str]:
    """Return the names of the operators that a network may be written with in several ways."""
    numbers = {Kind.HOST, Kind.QUERY, Kind.CREATION}
    excepted = {name for names in EXCEPT.values() for name in names.split()}
    found = (o for o in registry.operators() if o.kind not in numbers and len(compared(o)) > 1)
    return [operator.name for operator in found if operator.name not in excepted]
