"""`nn.MultiheadAttention` as explicit operations, so that its heads are visible in the graph.

    attention(q, k, v) = softmax(q k^T / sqrt(d) + mask) v, per head of width d.

If queries, keys and values share one input, one projection computes all three. The parameters stay in the module.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch


def is_expandable(module: nn.Module) -> bool:
    """Return True if `as_operations` computes exactly what the module does."""
    return (
        type(module) is nn.MultiheadAttention
        and getattr(module, "in_proj_weight", None) is not None
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


def is_batched(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return True if a call of the module has batched inputs, which `as_operations` requires."""
    query = args[0] if args else kwargs.get("query")
    return isinstance(query, Tensor) and query.dim() == 3


def as_operations(module: nn.MultiheadAttention) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return a forward that runs the module as operations on its parameters.

    Args:
        module: a module for which `is_expandable` holds.

    Returns:
        A function with the module's signature; its inputs must be batched, (batch, length, features) or, without
        `batch_first`, (length, batch, features).
    """

    def forward(  # noqa: PLR0913, PLR0917 -- the signature of the module's own
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 -- the signature of the module's own
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002 -- as above
        is_causal: bool = False,  # noqa: FBT001, FBT002 -- as above
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = _projected(module, query, key, value)
        mask = _mask(module, attn_mask, key_padding_mask, q)
        if need_weights:
            scores = (q * module.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, module.dropout, module.training)
            mixed, shown = weights @ v, weights.mean(1) if average_attn_weights else weights
        else:
            causal = is_causal and key_padding_mask is None
            dropout = module.dropout if module.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
            shown = None
        # Length first regardless of batch_first, as the module does it: dropout draws in memory order.
        result = module.out_proj(mixed.permute(2, 0, 1, 3).flatten(2))
        return result.transpose(0, 1) if module.batch_first else result, shown

    return forward


def _projected(module: nn.MultiheadAttention, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values, each (batch, heads, length, head width)."""
    weight: Tensor = module.in_proj_weight
    bias: Tensor | None = module.in_proj_bias
    rows = inputs if module.batch_first else tuple(x.transpose(0, 1) for x in inputs)
    if inputs[0] is inputs[1] and inputs[1] is inputs[2]:
        packed = F.linear(rows[0], weight, bias).chunk(3, -1)
        parts = [packed[i] for i in range(3)]
    else:
        weights = torch.chunk(weight, 3)
        biases = (None, None, None) if bias is None else torch.chunk(bias, 3)
        parts = [F.linear(rows[i], weights[i], biases[i]) for i in range(3)]
    heads = (module.num_heads, module.head_dim)
    return tuple(torch.unflatten(part, -1, heads).transpose(1, 2) for part in parts)


def _mask(module: nn.MultiheadAttention, attn: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the additive mask, broadcastable to (batch, heads, length, length); None without one."""
    if attn is not None:
        attn = _additive(attn, like)
        attn = torch.unflatten(attn, 0, (-1, module.num_heads)) if attn.dim() == 3 else attn
    if padding is None:
        return attn
    padding = _additive(padding, like)[:, None, None, :]
    return padding if attn is None else attn + padding


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
