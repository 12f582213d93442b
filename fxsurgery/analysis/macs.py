"""Multiply-accumulates of one ATen operation.

A MAC is one multiplication with its addition, so half of what `torch.utils.flop_counter` counts. Counted
are convolutions and matrix products: attention's two, the steps of recurrent layers, products with vectors,
bilinear forms, pairwise distances (one MAC a feature). Not counted by convention are biases, norms, activations
and all else that is elementwise (a product that is multiplied and summed by hand too), reductions, pooling and
resampling, lookups and data movement; they are named in `Cost.uncounted`. What is neither has unknown MACs:
transforms, decompositions and solvers, sparse and quantized products, operations of other libraries. These are
named in `Cost.unknown_macs`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from fxsurgery.ops.rules import RULES
from fxsurgery.ops.rules.call import base_name

Args = Sequence[Any]

PRODUCTS = {
    "mm": 0, "addmm": 1, "_addmm_activation": 1, "bmm": 0, "baddbmm": 1, "matmul": 0, "mv": 0, "addmv": 1, "dot": 0,
    "vdot": 0, "_int_mm": 0, "_scaled_mm": 0, "_scaled_mm_v2": 0, "_weight_int8pack_mm": 0, "_weight_int4pack_mm": 0,
    "affine_grid_generator": 0,
}  # fmt: skip
"""Products by the place of their left operand, whose last dim is summed over."""

DISTANCES = frozenset("_cdist_forward _euclidean_dist _pdist_forward".split())
CONVOLUTIONS = frozenset("convolution _convolution convolution_overrideable".split())
"""With the flag that says whether it is transposed at place 6."""
DIRECT_CONVOLUTIONS = frozenset(
    "cudnn_convolution mkldnn_convolution miopen_convolution miopen_depthwise_convolution _slow_conv2d_forward "
    "slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d "
    "_nnpack_spatial_convolution torchvision::deform_conv2d".split()
)
TRANSPOSED_CONVOLUTIONS = frozenset(
    "cudnn_convolution_transpose miopen_convolution_transpose slow_conv_transpose2d slow_conv_transpose3d".split()
)

TRANSFORMS = frozenset("_fft_r2c _fft_c2r _fft_c2c".split())
"""What has a rule of structure, and MACs that nobody counts."""

FREE = frozenset(
    # Data movement and creation.
    "as_strided as_strided_scatter slice_scatter select_scatter diagonal_scatter diag_embed block_diag rot90 scatter "
    "index_put _index_put_impl _unsafe_index_put index_fill index_copy masked_scatter masked_select put take "
    "repeat_interleave nonzero nonzero_static _stack _chunk_cat _lazy_clone lift lift_fresh set resize resize_as fill "
    "zero _pin_memory _pack_padded_sequence _unsafe_masked_index _unsafe_masked_index_put_accumulate tril_indices "
    "triu_indices range bartlett_window blackman_window hamming_window hann_window kaiser_window empty_permuted "
    "fft_fftfreq fft_rfftfreq complex polar view_as_real_copy _to_dense _to_sparse _to_sparse_csr _coalesce _coalesced "
    "values _values indices _indices sparse_coo_tensor _sparse_coo_tensor_with_dims_and_tensors sparse_mask "
    "_padded_dense_to_jagged_forward _jagged_to_padded_dense_forward _transform_bias_rescale_qkv "
    "cudnn_affine_grid_generator "
    # Reductions, scans, counting, sorting.
    "scatter_add scatter_reduce index_add index_reduce segment_reduce aminmax _aminmax cumprod logcumsumexp "
    "_logcumsumexp mode nanmedian nansum dist trace histc bincount native_norm linalg__powsum renorm embedding_renorm "
    "searchsorted bucketize _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive isin _is_all_true "
    "_is_any_true _sparse_sum _sparse_softmax _sparse_log_softmax _masked_softmax hash_tensor "
    # Elementwise without the tag.
    "linalg_cross rrelu_with_noise rrelu_with_noise_functional _thnn_fused_gru_cell _thnn_fused_lstm_cell glu "
    "binary_cross_entropy mse_loss nll_loss_forward nll_loss2d_forward huber_loss smooth_l1_loss soft_margin_loss "
    "multi_margin_loss multilabel_margin_loss_forward _ctc_loss log_sigmoid_forward "
    "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask quantize_per_tensor "
    "quantize_per_tensor_dynamic quantize_per_channel dequantize int_repr "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams "
    "_fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional "
    # Norms.
    "batch_norm_stats batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts "
    "batch_norm_update_stats _batch_norm_with_update _batch_norm_with_update_functional "
    "_native_batch_norm_legit_functional "
    # Random numbers.
    "multinomial poisson binomial cauchy geometric log_normal random normal_functional _standard_gamma "
    "_sample_dirichlet _fused_dropout "
    # Pooling and resampling.
    "max_unpool2d max_unpool3d fractional_max_pool2d fractional_max_pool3d _upsample_bicubic2d_aa "
    "_upsample_bilinear2d_aa _upsample_lanczos2d_aa _grid_sampler_2d_cpu_fallback cudnn_grid_sampler "
    "torchvision::nms torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_align "
    "torchvision::ps_roi_pool".split()
)
"""Operations without MACs by the convention, beside those that are pointwise, views, or have a rule of structure."""


def macs_of(op: OpOverload, args: Args, kwargs: dict[str, Any], result: object) -> float | None:
    """MACs of `op` on (meta) tensors; `None` where it has none by the convention, or unknown ones."""
    rule = _rule_of(base_name(op))
    first = _first_tensor(result)
    if first is None:
        return None
    if rule is not None:
        return rule(args, first)
    registered = flop_registry.get(op.overloadpacket)
    return None if registered is None else float(registered(*args, **kwargs, out_val=result)) / 2


@functools.cache
def has_unknown_macs(op: OpOverload) -> bool:
    """Whether `op`, which has no MACs that could be counted, may have some all the same."""
    name = base_name(op)
    if name in TRANSFORMS or (name in FREE or name in RULES or op.is_view):
        return name in TRANSFORMS
    if "::" in name:
        return True
    elementwise = name.startswith("_foreach") and name != "_foreach_mm"
    packet = op.overloadpacket
    overloads = (getattr(packet, overload) for overload in packet.overloads())
    pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads)
    return not (elementwise or pointwise or name.endswith("_copy"))


def _first_tensor(result: object) -> Tensor | None:
    found = result if isinstance(result, (tuple, list)) else (result,)
    return next((r for r in found if isinstance(r, Tensor)), None)


@functools.cache
def _rule_of(name: str) -> Callable[[Args, Tensor], float] | None:  # noqa: PLR0911 -- one line a family
    if name in PRODUCTS:
        return functools.partial(_product, PRODUCTS[name])
    if name in DISTANCES:
        return functools.partial(_product, 0)
    if name in CONVOLUTIONS:
        return lambda args, result: _convolution(args, result, transposed=bool(args[6]))
    if name in DIRECT_CONVOLUTIONS:
        return lambda args, result: _convolution(args, result, transposed=False)
    if name in TRANSPOSED_CONVOLUTIONS:
        return lambda args, result: _convolution(args, result, transposed=True)
    if "scaled_dot_product" in name:
        return _attention
    return _OTHERS.get(name)


def _product(left: int, args: Args, result: Tensor) -> float:
    return float(result.numel() * args[left].shape[-1])


def _convolution(args: Args, result: Tensor, *, transposed: bool) -> float:
    return float((args[0].numel() if transposed else result.numel()) * math.prod(args[1].shape[1:]))


def _attention(args: Args, result: Tensor) -> float:
    del result
    query, key, value = args[:3]
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return float(scores * (query.shape[-1] + value.shape[-1]))


def _bilinear(args: Args, result: Tensor) -> float:
    """The three factors, broadcast over the dims of each other: one MAC for each of their products."""
    del result
    sizes = [list(tensor.shape) for tensor in args[:3]]
    for size, expanded in zip(sizes, args[3:6], strict=True):
        for dim in expanded:
            size.insert(dim, 1)
    return float(math.prod(map(max, *sizes)))


def _recurrent(weights: Sequence[Tensor], given: Tensor) -> float:
    """Each matrix is multiplied by once a step."""
    steps = given.numel() // given.shape[-1]
    return float(steps * sum(w.numel() for w in weights if w.dim() == 2))


def _whole_attention(args: Args, result: Tensor) -> float:
    """Projections of query, key and value, the two products, and the projection of what comes out."""
    del result
    query, key = args[:2]
    width, rows, columns = args[3], query.numel() // query.shape[-1], key.numel() // key.shape[-1]
    return float(width * (2 * width * (rows + columns) + 2 * rows * key.shape[-2]))


def _transformer_layer(args: Args, result: Tensor) -> float:
    source, width = args[0], args[1]
    tokens = source.numel() // source.shape[-1]
    perceptron = args[14].numel() + args[16].numel()
    return _whole_attention((source, source, source, width), result) + float(tokens * perceptron)


_OTHERS: dict[str, Callable[[Args, Tensor], float]] = {
    "addbmm": lambda args, result: _product(1, args, result) * float(args[1].shape[0]),
    "addr": lambda _, result: float(result.numel()),
    "linear": lambda args, result: float(result.numel() * args[1].shape[-1]),
    "conv_tbc": lambda args, result: float(result.numel() * math.prod(args[1].shape[:2])),
    "_trilinear": _bilinear,
    "mkldnn_rnn_layer": lambda args, _: _recurrent(args[1:3], args[0]),
    "_cudnn_rnn": lambda args, _: _recurrent(args[1], args[0]),
    "miopen_rnn": lambda args, _: _recurrent(args[1], args[0]),
    "_native_multi_head_attention": _whole_attention,
    "_transformer_encoder_layer_fwd": _transformer_layer,
}
