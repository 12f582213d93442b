"""Operators that select or write entries by index or value: embeddings, indexing, sorting."""

from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops import module_sizes
from fxsurgery.ops.facets import OperandArgument, SizeArguments, SizeRule, Weight
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules import lookup as rules
from fxsurgery.ops.rules.call import Rule

_TABLE = Weight(OperandArgument(1, "weight"), outputs=1, inputs=None)

# The functions with these names in `torch` take the table first.
EMBEDDING = Operator(
    name="embedding",
    kind=Kind.LOOKUP,
    size_attributes=module_sizes.embedding,
    functions=(F.embedding,),
    modules=(nn.Embedding,),
    is_named=False,
    aten=("embedding",),
    weight=_TABLE,
    rule=rules.embedding,
)
EMBEDDING_BAG = Operator(
    name="embedding_bag",
    kind=Kind.LOOKUP,
    size_attributes=module_sizes.embedding,
    functions=(F.embedding_bag,),
    modules=(nn.EmbeddingBag,),
    is_named=False,
    aten=("_embedding_bag", "_embedding_bag_forward_only"),
    weight=_TABLE,
    rule=rules.bag,
)


def _looked_up(name: str, rule: Rule | None = None, *aten: str) -> Operator:
    return Operator(name=name, kind=Kind.LOOKUP, rule=rule, aten=aten)


DECLARED = (
    EMBEDDING,
    EMBEDDING_BAG,
    Operator(
        name="index",
        kind=Kind.LOOKUP,
        is_named=False,
        aten=("index", "_unsafe_index"),
        rule=rules.indexing,
        computes=False,
    ),
    Operator(
        name="setitem",
        kind=Kind.LOOKUP,
        dunder="setitem",
        writes=True,
        sizes=SizeArguments(SizeRule.INDEX, (OperandArgument(1, "index"),), computed=False),
    ),
    _looked_up("index_select", rules.index_select),
    *(
        _looked_up(name, rules.gathering)
        for name in ("gather", "sort", "topk", "argsort", "kthvalue", "cummax", "cummin")
    ),
    _looked_up("index_put", None, "_index_put_impl", "_unsafe_index_put"),
    *map(
        _looked_up,
        "take take_along_dim msort one_hot searchsorted bucketize isin scatter scatter_add scatter_reduce index_add "
        "index_copy index_fill index_reduce masked_scatter select_scatter slice_scatter diagonal_scatter "
        "as_strided_scatter put".split(),
    ),
    *(
        Operator(name=name, kind=Kind.LOOKUP, sized_by_values=True)
        for name in "nonzero argwhere masked_select unique unique_consecutive".split()
    ),
)
