"""Operators that move entries without changing them: views, permutations, parts."""

import torch
from torch import Tensor, nn

from fxsurgery.ops import module_sizes
from fxsurgery.ops.facets import OperandArgument, SizeArguments, SizeRule
from fxsurgery.ops.fast import calls, modules
from fxsurgery.ops.fast.meta_call import FastCall
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules import movement as rules
from fxsurgery.ops.rules.call import Rule

_SHAPE = SizeArguments(SizeRule.SHAPE, (OperandArgument(1, "size", None, ("shape",)),))
_DIM = OperandArgument(2, "dim", 0)


_WITHOUT_WORK = (rules.move, rules.same, rules.viewing)


def moved(
    name: str,
    *aliases: str,
    rule: Rule | None = None,
    aten: str = "",
    fast_call: FastCall | None = None,
    facts: str = "rearranges",
) -> Operator:
    """Return the declaration of an operator that moves entries, without computing anything if the rule is exact.

    Args:
        name: name of the operator.
        aliases: other names.
        rule: how labels propagate.
        aten: names of further ATen operations, separated by spaces.
        fast_call: computes the result shapes without running the operation.
        facts: which of `rearranges`, `picks` and `regroups` hold, separated by spaces.
    """
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        aliases=aliases,
        keeps_zero=True,
        rule=rule,
        aten=tuple(aten.split()),
        computes=rule not in _WITHOUT_WORK,
        fast_call=fast_call,
        rearranges="rearranges" in facts,
        picks="picks" in facts,
        regroups="regroups" in facts,
    )


def _reshaped(name: str, rule: Rule | None = None, aten: str = "", fast_call: FastCall | None = None) -> Operator:
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        sizes=_SHAPE,
        keeps_zero=True,
        rule=rule,
        aten=tuple(aten.split()),
        computes=rule is None,
        states_sizes=True,
        fast_call=fast_call,
        rearranges=True,
        regroups=name in {"view", "reshape"},
    )


def _parted(name: str, sizes: OperandArgument, parts: OperandArgument | None, rule: Rule | None = None) -> Operator:
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.PIECES, (sizes, _DIM)),
        parts=parts,
        keeps_zero=True,
        rule=rule,
        computes=rule is None,
        states_sizes=name == "split",
        rearranges=True,
        picks=True,
    )


_PIECE = OperandArgument(1, "split_size", None, ("split_size_or_sections",))
_COUNT = OperandArgument(1, "chunks")
_SECTIONS = OperandArgument(1, "indices_or_sections", None, ("sections", "indices"))

FLATTEN = Operator(
    name="flatten",
    kind=Kind.MOVEMENT,
    modules=(nn.Flatten,),
    keeps_zero=True,
    rearranges=True,
    regroups=True,
    fast_call=calls.reshaped(torch.flatten),
    fast_module=modules.flattened,
)

UNFLATTEN = Operator(
    name="unflatten",
    kind=Kind.MOVEMENT,
    size_attributes=module_sizes.unflatten,
    modules=(nn.Unflatten,),
    fast_call=calls.reshaped(Tensor.unflatten),
    sizes=SizeArguments(
        SizeRule.UNFLATTENED, (OperandArgument(1, "dim"), OperandArgument(2, "sizes", None, ("unflattened_size",)))
    ),
    keeps_zero=True,
    rearranges=True,
    regroups=True,
)

RESHAPING = (
    _reshaped("view", rules.viewing, "_unsafe_view", calls.reshaped(Tensor.view)),
    _reshaped("reshape", rules.viewing, fast_call=calls.reshaped(Tensor.reshape)),
    _reshaped("expand", rules.move),
    _reshaped("broadcast_to"),
    moved("view_as", facts="rearranges regroups"),
    moved("reshape_as", facts="rearranges regroups"),
    moved("expand_as"),
    moved("broadcast_tensors", facts=""),
    moved("ravel", facts="rearranges regroups"),
    moved("squeeze", rule=rules.move),
    moved("unsqueeze", rule=rules.move, fast_call=calls.reshaped(Tensor.unsqueeze)),
    FLATTEN,
    UNFLATTEN,
)

PERMUTING = (
    moved("permute", rule=rules.move, fast_call=calls.permute, facts="rearranges regroups"),
    moved("transpose", "swapaxes", "swapdims", rule=rules.move, fast_call=calls.transpose, facts="rearranges regroups"),
    moved("movedim", "moveaxis", facts="rearranges regroups"),
    Operator(
        name="t",
        kind=Kind.MOVEMENT,
        attributes=("T",),
        keeps_zero=True,
        rearranges=True,
        regroups=True,
        rule=rules.move,
        computes=False,
    ),
    Operator(
        name="mT",
        kind=Kind.MOVEMENT,
        attributes=("mT",),
        is_named=False,
        keeps_zero=True,
        rearranges=True,
        regroups=True,
    ),
    Operator(name="adjoint", kind=Kind.MOVEMENT, attributes=("H", "mH"), keeps_zero=True, regroups=True),
)

GETITEM = Operator(
    name="getitem",
    kind=Kind.MOVEMENT,
    dunder="getitem",
    sizes=SizeArguments(SizeRule.INDEX, (OperandArgument(1, "index"),)),
    keeps_zero=True,
    rearranges=True,
    picks=True,
)

UNBIND = moved("unbind", rule=rules.move, fast_call=calls.unbind, facts="rearranges picks")

PARTS = (
    _parted("split", _PIECE, _PIECE, rules.move),
    _parted("unsafe_split", _PIECE, _PIECE, rules.move),
    _parted("split_with_sizes", _PIECE, None, rules.move),
    _parted("chunk", _COUNT, _COUNT),
    _parted("unsafe_chunk", _COUNT, _COUNT, rules.move),
    _parted("tensor_split", _SECTIONS, None),
    moved("unsafe_split_with_sizes", rule=rules.move, facts="rearranges picks"),
    UNBIND,
    moved("hsplit", facts="rearranges picks"),
    moved("vsplit", facts="rearranges picks"),
    moved("dsplit", facts="rearranges picks"),
    Operator(
        name="narrow",
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(
            SizeRule.RANGE, (OperandArgument(1, "dim"), OperandArgument(2, "start"), OperandArgument(3, "length"))
        ),
        keeps_zero=True,
        rearranges=True,
        picks=True,
    ),
    Operator(
        name="select",
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.ENTRY, (OperandArgument(1, "dim"), OperandArgument(2, "index"))),
        keeps_zero=True,
        rearranges=True,
        picks=True,
        rule=rules.selection,
        computes=False,
        states_sizes=True,
    ),
    GETITEM,
    Operator(
        name="slice",
        kind=Kind.MOVEMENT,
        keeps_zero=True,
        rearranges=True,
        picks=True,
        rule=rules.move,
        computes=False,
        states_sizes=True,
    ),
    moved("diagonal", rule=rules.move, facts="rearranges picks"),
)

DECLARED = (*RESHAPING, *PERMUTING, *PARTS)
