"""Operators that keep values: copies, casts, rearrangements, and views with sizes that cannot be rewritten."""

from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops.facets import OperandArgument, SizeArguments, SizeRule, Unsupported
from fxsurgery.ops.fast import calls
from fxsurgery.ops.fast.meta_call import FastCall
from fxsurgery.ops.movement import moved
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules import movement as rules


def _hiding(name: str) -> Operator:
    return Operator(name=name, kind=Kind.MOVEMENT, hides_sizes=True, keeps_zero=True, picks=True, regroups=True)


def _copied(name: str, fast_call: FastCall | None = None) -> Operator:
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        role="identity",
        keeps_zero=True,
        rearranges=True,
        rule=rules.same,
        computes=False,
        fast_call=fast_call,
    )


COPIES = (
    _copied("contiguous", calls.contiguous),
    _copied("clone"),
    moved("detach", rule=rules.same),
    Operator(
        name="to",
        kind=Kind.MOVEMENT,
        methods=tuple(
            "bfloat16 bool byte cdouble cfloat char cpu cuda double float half int long short type type_as xpu".split()
        ),
        keeps_zero=True,
        aten=("_to_copy",),
        rule=rules.same,
        computes=False,
    ),
    moved("conj", rule=rules.same, aten="_conj", facts=""),
    moved("resolve_conj", rule=rules.same, facts=""),
    moved("resolve_neg", facts=""),
    Operator(name="real", kind=Kind.MOVEMENT, attributes=("real",), keeps_zero=True),
    Operator(name="imag", kind=Kind.MOVEMENT, attributes=("imag",), keeps_zero=True),
    moved("view_as_complex", rule=rules.to_complex, facts=""),
    moved("view_as_real", rule=rules.to_real, facts=""),
)

REARRANGING = (
    Operator(
        name="roll",
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(
            SizeRule.SHIFTS, (OperandArgument(1, "shifts"), OperandArgument(2, "dims")), computed=False
        ),
        keeps_zero=True,
        rearranges=True,
        rule=rules.rotation,
        computes=False,
    ),
    Operator(name="flip", kind=Kind.MOVEMENT, keeps_zero=True, rearranges=True, rule=rules.mirroring, computes=False),
    moved("fliplr"),
    moved("flipud"),
    moved("rot90"),
    Operator(
        name="repeat",
        kind=Kind.MOVEMENT,
        keeps_zero=True,
        rearranges=True,
        rule=rules.tiling,
        computes=False,
        states_sizes=True,
    ),
    moved("tile"),
    moved("repeat_interleave"),
    moved("triu", rule=rules.same, facts="picks"),
    moved("tril", rule=rules.same, facts="picks"),
    Operator(
        name="pixel_shuffle",
        kind=Kind.MOVEMENT,
        modules=(nn.PixelShuffle,),
        keeps_zero=True,
        rearranges=True,
        rule=rules.pixel_shuffle,
        computes=False,
    ),
    Operator(
        name="pixel_unshuffle",
        kind=Kind.MOVEMENT,
        modules=(nn.PixelUnshuffle,),
        keeps_zero=True,
        rearranges=True,
        rule=rules.patches,
    ),
    Operator(
        name="channel_shuffle",
        kind=Kind.MOVEMENT,
        aliases=("native_channel_shuffle",),
        modules=(nn.ChannelShuffle,),
        keeps_zero=True,
        rearranges=True,
        rule=rules.channel_shuffle,
        fast_call=calls.channel_shuffle,
    ),
    Operator(
        name="windows",
        kind=Kind.MOVEMENT,
        methods=("unfold",),
        aten=("unfold",),
        keeps_zero=True,
        rearranges=True,
        rule=rules.windows,
    ),
    Operator(name="im2col", kind=Kind.MOVEMENT, functions=(F.unfold,), modules=(nn.Unfold,), rule=rules.patches),
    Operator(name="col2im", kind=Kind.MOVEMENT, functions=(F.fold,), modules=(nn.Fold,), rule=rules.pixel_shuffle),
    moved("diag", facts="picks"),
    moved("diag_embed", facts=""),
    moved("diagflat", facts=""),
    moved("atleast_1d"),
    moved("atleast_2d"),
    moved("atleast_3d"),
)

HIDING = (
    _hiding("as_strided"),
    Operator(
        name="resize",
        kind=Kind.MOVEMENT,
        hides_sizes=True,
        unsupported=Unsupported(
            "Tensor.resize_ is called, which changes the tensor's own state", "Create a new tensor"
        ),
    ),
    _hiding("resize_as"),
    _hiding("view_copy"),
    _hiding("expand_copy"),
    _hiding("as_strided_copy"),
)
"""Views with size arguments that cannot be rewritten."""

DECLARED = (*COPIES, *REARRANGING, *HIDING)
