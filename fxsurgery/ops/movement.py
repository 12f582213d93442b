"""Entries that keep their values: views, permutations, parts, rearrangements."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops.facets import Argument, Refused, SizeArguments, SizeRule
from fxsurgery.ops.fast import calls
from fxsurgery.ops.fast.plain import FastCall
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules import movement as rules
from fxsurgery.ops.rules.call import Rule

_SHAPE = SizeArguments(SizeRule.SHAPE, (Argument(1, "size", None, ("shape",)),))
_DIM = Argument(2, "dim", 0)


_WITHOUT_WORK = (rules.move, rules.same, rules.viewing)


def _moved(
    name: str, *aliases: str, rule: Rule | None = None, aten: str = "", fast_call: FastCall | None = None
) -> Operator:
    """Entries that go elsewhere; by rules that run the operation itself, none is computed."""
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        aliases=aliases,
        keeps_zero=True,
        rule=rule,
        aten=tuple(aten.split()),
        computes=rule not in _WITHOUT_WORK,
        fast_call=fast_call,
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
    )


def _hiding(name: str) -> Operator:
    return Operator(name=name, kind=Kind.MOVEMENT, hides_sizes=True, keeps_zero=True)


def _parted(name: str, sizes: Argument, parts: Argument | None, rule: Rule | None = None) -> Operator:
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.PIECES, (sizes, _DIM)),
        parts=parts,
        keeps_zero=True,
        rule=rule,
        computes=rule is None,
        states_sizes=name == "split",
    )


_PIECE = Argument(1, "split_size", None, ("split_size_or_sections",))
_COUNT = Argument(1, "chunks")
_SECTIONS = Argument(1, "indices_or_sections", None, ("sections", "indices"))

RESHAPING = (
    _reshaped("view", rules.viewing, "_unsafe_view", calls.reshaped(Tensor.view)),
    _reshaped("reshape", rules.viewing, fast_call=calls.reshaped(Tensor.reshape)),
    _reshaped("expand", rules.move),
    _reshaped("broadcast_to"),
    _moved("view_as"),
    _moved("reshape_as"),
    _moved("expand_as"),
    _moved("broadcast_tensors"),
    _moved("ravel"),
    _moved("squeeze", rule=rules.move),
    _moved("unsqueeze", rule=rules.move, fast_call=calls.reshaped(Tensor.unsqueeze)),
    Operator(
        name="flatten",
        kind=Kind.MOVEMENT,
        modules=(nn.Flatten,),
        keeps_zero=True,
        fast_call=calls.reshaped(torch.flatten),
    ),
    Operator(
        name="unflatten",
        kind=Kind.MOVEMENT,
        modules=(nn.Unflatten,),
        fast_call=calls.reshaped(Tensor.unflatten),
        sizes=SizeArguments(
            SizeRule.UNFLATTENED, (Argument(1, "dim"), Argument(2, "sizes", None, ("unflattened_size",)))
        ),
        keeps_zero=True,
    ),
)

PERMUTING = (
    _moved("permute", rule=rules.move, fast_call=calls.permute),
    _moved("transpose", "swapaxes", "swapdims", rule=rules.move, fast_call=calls.transpose),
    _moved("movedim", "moveaxis"),
    Operator(name="t", kind=Kind.MOVEMENT, attributes=("T",), keeps_zero=True, rule=rules.move, computes=False),
    Operator(name="mT", kind=Kind.MOVEMENT, attributes=("mT",), is_named=False, keeps_zero=True),
    Operator(name="adjoint", kind=Kind.MOVEMENT, attributes=("H", "mH"), keeps_zero=True),
)

PARTS = (
    _parted("split", _PIECE, _PIECE, rules.move),
    _parted("unsafe_split", _PIECE, _PIECE, rules.move),
    _parted("split_with_sizes", _PIECE, None, rules.move),
    _parted("chunk", _COUNT, _COUNT),
    _parted("unsafe_chunk", _COUNT, _COUNT, rules.move),
    _parted("tensor_split", _SECTIONS, None),
    _moved("unsafe_split_with_sizes", rule=rules.move),
    _moved("unbind", rule=rules.move, fast_call=calls.unbind),
    _moved("hsplit"),
    _moved("vsplit"),
    _moved("dsplit"),
    Operator(
        name="narrow",
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.RANGE, (Argument(1, "dim"), Argument(2, "start"), Argument(3, "length"))),
        keeps_zero=True,
    ),
    Operator(
        name="select",
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.ENTRY, (Argument(1, "dim"), Argument(2, "index"))),
        keeps_zero=True,
        rule=rules.selection,
        computes=False,
        states_sizes=True,
    ),
    Operator(
        name="getitem",
        kind=Kind.MOVEMENT,
        dunder="getitem",
        sizes=SizeArguments(SizeRule.INDEX, (Argument(1, "index"),)),
        keeps_zero=True,
    ),
    Operator(
        name="slice",
        kind=Kind.MOVEMENT,
        keeps_zero=True,
        rule=rules.move,
        computes=False,
        states_sizes=True,
    ),
    _moved("diagonal", rule=rules.move),
)


def _copied(name: str, fast_call: FastCall | None = None) -> Operator:
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        role="identity",
        keeps_zero=True,
        rule=rules.same,
        computes=False,
        fast_call=fast_call,
    )


COPIES = (
    _copied("contiguous", calls.contiguous),
    _copied("clone"),
    _moved("detach", rule=rules.same),
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
    _moved("conj", rule=rules.same, aten="_conj"),
    _moved("resolve_conj", rule=rules.same),
    _moved("resolve_neg"),
    Operator(name="real", kind=Kind.MOVEMENT, attributes=("real",), keeps_zero=True),
    Operator(name="imag", kind=Kind.MOVEMENT, attributes=("imag",), keeps_zero=True),
    _moved("view_as_complex", rule=rules.to_complex),
    _moved("view_as_real", rule=rules.to_real),
)

REARRANGING = (
    Operator(
        name="roll",
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.SHIFTS, (Argument(1, "shifts"), Argument(2, "dims")), computed=False),
        keeps_zero=True,
        rule=rules.rotation,
        computes=False,
    ),
    Operator(name="flip", kind=Kind.MOVEMENT, keeps_zero=True, rule=rules.mirroring, computes=False),
    _moved("fliplr"),
    _moved("flipud"),
    _moved("rot90"),
    Operator(name="repeat", kind=Kind.MOVEMENT, keeps_zero=True, rule=rules.tiling, computes=False, states_sizes=True),
    _moved("tile"),
    _moved("repeat_interleave"),
    _moved("triu", rule=rules.same),
    _moved("tril", rule=rules.same),
    Operator(
        name="pixel_shuffle",
        kind=Kind.MOVEMENT,
        modules=(nn.PixelShuffle,),
        keeps_zero=True,
        rule=rules.pixel_shuffle,
        computes=False,
    ),
    Operator(
        name="pixel_unshuffle", kind=Kind.MOVEMENT, modules=(nn.PixelUnshuffle,), keeps_zero=True, rule=rules.patches
    ),
    Operator(
        name="channel_shuffle",
        kind=Kind.MOVEMENT,
        aliases=("native_channel_shuffle",),
        modules=(nn.ChannelShuffle,),
        keeps_zero=True,
        rule=rules.channel_shuffle,
    ),
    Operator(
        name="windows", kind=Kind.MOVEMENT, methods=("unfold",), aten=("unfold",), keeps_zero=True, rule=rules.windows
    ),
    Operator(name="im2col", kind=Kind.MOVEMENT, functions=(F.unfold,), modules=(nn.Unfold,), rule=rules.patches),
    Operator(name="col2im", kind=Kind.MOVEMENT, functions=(F.fold,), modules=(nn.Fold,), rule=rules.pixel_shuffle),
    _moved("diag"),
    _moved("diag_embed"),
    _moved("diagflat"),
    _moved("atleast_1d"),
    _moved("atleast_2d"),
    _moved("atleast_3d"),
)

HIDING = (
    _hiding("as_strided"),
    Operator(
        name="resize",
        kind=Kind.MOVEMENT,
        hides_sizes=True,
        refused=Refused("Tensor.resize_ is called, which acts on the tensor's own state", "Make a new tensor"),
    ),
    _hiding("resize_as"),
    _hiding("view_copy"),
    _hiding("expand_copy"),
    _hiding("as_strided_copy"),
)
"""They are told sizes in a way that nothing rewrites."""

DECLARED = (*RESHAPING, *PERMUTING, *PARTS, *COPIES, *REARRANGING, *HIDING)
