"""Entries that are picked or written by number or by value: embeddings, indexing, sorting."""

from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops.facets import Argument, SizeArguments, SizeRule, Weight
from fxsurgery.ops.operator import Kind, Operator

_TABLE = Weight(Argument(1, "weight"), outputs=1, inputs=None)

# Under these names `torch` has functions that take the table first.
EMBEDDING = Operator(
    name="embedding",
    kind=Kind.LOOKUP,
    functions=(F.embedding,),
    modules=(nn.Embedding,),
    is_named=False,
    weight=_TABLE,
)
EMBEDDING_BAG = Operator(
    name="embedding_bag",
    kind=Kind.LOOKUP,
    functions=(F.embedding_bag,),
    modules=(nn.EmbeddingBag,),
    is_named=False,
    weight=_TABLE,
)

DECLARED = (
    EMBEDDING,
    EMBEDDING_BAG,
    Operator(
        name="setitem",
        kind=Kind.LOOKUP,
        dunder="setitem",
        writes=True,
        sizes=SizeArguments(SizeRule.INDEX, (Argument(1, "index"),), computed=False),
    ),
    *(
        Operator(name=name, kind=Kind.LOOKUP)
        for name in (
            "index_select gather take take_along_dim sort msort topk argsort kthvalue cummax cummin one_hot "
            "searchsorted bucketize isin scatter scatter_add scatter_reduce index_add index_copy index_fill index_put "
            "index_reduce masked_scatter select_scatter slice_scatter diagonal_scatter as_strided_scatter put"
        ).split()
    ),
    *(
        Operator(name=name, kind=Kind.LOOKUP, sized_by_values=True)
        for name in "nonzero argwhere masked_select unique unique_consecutive".split()
    ),
)
