"""Entries that keep their values: views, permutations, parts, rearrangements."""

from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops.facets import Argument, Refused, SizeArguments, SizeRule
from fxsurgery.ops.operator import Kind, Operator

_SHAPE = SizeArguments(SizeRule.SHAPE, (Argument(1, "size", None, ("shape",)),))
_DIM = Argument(2, "dim", 0)


def _moved(name: str, *aliases: str) -> Operator:
    return Operator(name=name, kind=Kind.MOVEMENT, aliases=aliases, keeps_zero=True)


def _reshaped(name: str) -> Operator:
    return Operator(name=name, kind=Kind.MOVEMENT, sizes=_SHAPE, keeps_zero=True)


def _hiding(name: str) -> Operator:
    return Operator(name=name, kind=Kind.MOVEMENT, hides_sizes=True, keeps_zero=True)


def _parted(name: str, sizes: Argument, parts: Argument | None) -> Operator:
    return Operator(
        name=name,
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.PIECES, (sizes, _DIM)),
        parts=parts,
        keeps_zero=True,
    )


_PIECE = Argument(1, "split_size", None, ("split_size_or_sections",))
_COUNT = Argument(1, "chunks")
_SECTIONS = Argument(1, "indices_or_sections", None, ("sections", "indices"))

RESHAPING = (
    _reshaped("view"),
    _reshaped("reshape"),
    _reshaped("expand"),
    _reshaped("broadcast_to"),
    _moved("view_as"),
    _moved("reshape_as"),
    _moved("expand_as"),
    _moved("broadcast_tensors"),
    _moved("ravel"),
    _moved("squeeze"),
    _moved("unsqueeze"),
    Operator(name="flatten", kind=Kind.MOVEMENT, modules=(nn.Flatten,), keeps_zero=True),
    Operator(
        name="unflatten",
        kind=Kind.MOVEMENT,
        modules=(nn.Unflatten,),
        sizes=SizeArguments(
            SizeRule.UNFLATTENED, (Argument(1, "dim"), Argument(2, "sizes", None, ("unflattened_size",)))
        ),
        keeps_zero=True,
    ),
)

PERMUTING = (
    _moved("permute"),
    _moved("transpose", "swapaxes", "swapdims"),
    _moved("movedim", "moveaxis"),
    Operator(name="t", kind=Kind.MOVEMENT, attributes=("T",), keeps_zero=True),
    Operator(name="mT", kind=Kind.MOVEMENT, attributes=("mT",), is_named=False, keeps_zero=True),
    Operator(name="adjoint", kind=Kind.MOVEMENT, attributes=("H", "mH"), keeps_zero=True),
)

PARTS = (
    _parted("split", _PIECE, _PIECE),
    _parted("unsafe_split", _PIECE, _PIECE),
    _parted("split_with_sizes", _PIECE, None),
    _parted("chunk", _COUNT, _COUNT),
    _parted("unsafe_chunk", _COUNT, _COUNT),
    _parted("tensor_split", _SECTIONS, None),
    _moved("unsafe_split_with_sizes"),
    _moved("unbind"),
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
    ),
    Operator(
        name="getitem",
        kind=Kind.MOVEMENT,
        dunder="getitem",
        sizes=SizeArguments(SizeRule.INDEX, (Argument(1, "index"),)),
        keeps_zero=True,
    ),
    _moved("diagonal"),
)

COPIES = (
    Operator(name="contiguous", kind=Kind.MOVEMENT, role="identity", keeps_zero=True),
    Operator(name="clone", kind=Kind.MOVEMENT, role="identity", keeps_zero=True),
    _moved("detach"),
    Operator(
        name="to",
        kind=Kind.MOVEMENT,
        methods=tuple(
            "bfloat16 bool byte cdouble cfloat char cpu cuda double float half int long short type type_as xpu".split()
        ),
        keeps_zero=True,
    ),
    _moved("conj"),
    _moved("resolve_conj"),
    _moved("resolve_neg"),
    Operator(name="real", kind=Kind.MOVEMENT, attributes=("real",), keeps_zero=True),
    Operator(name="imag", kind=Kind.MOVEMENT, attributes=("imag",), keeps_zero=True),
    _moved("view_as_complex"),
    _moved("view_as_real"),
)

REARRANGING = (
    Operator(
        name="roll",
        kind=Kind.MOVEMENT,
        sizes=SizeArguments(SizeRule.SHIFTS, (Argument(1, "shifts"), Argument(2, "dims")), computed=False),
        keeps_zero=True,
    ),
    _moved("flip"),
    _moved("fliplr"),
    _moved("flipud"),
    _moved("rot90"),
    _moved("repeat"),
    _moved("tile"),
    _moved("repeat_interleave"),
    _moved("triu"),
    _moved("tril"),
    Operator(name="pixel_shuffle", kind=Kind.MOVEMENT, modules=(nn.PixelShuffle,), keeps_zero=True),
    Operator(name="pixel_unshuffle", kind=Kind.MOVEMENT, modules=(nn.PixelUnshuffle,), keeps_zero=True),
    Operator(
        name="channel_shuffle",
        kind=Kind.MOVEMENT,
        aliases=("native_channel_shuffle",),
        modules=(nn.ChannelShuffle,),
        keeps_zero=True,
    ),
    Operator(name="windows", kind=Kind.MOVEMENT, methods=("unfold",), keeps_zero=True),
    Operator(name="im2col", kind=Kind.MOVEMENT, functions=(F.unfold,), modules=(nn.Unfold,), keeps_zero=True),
    Operator(name="col2im", kind=Kind.MOVEMENT, functions=(F.fold,), modules=(nn.Fold,), keeps_zero=True),
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
