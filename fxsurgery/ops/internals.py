"""ATen operations without a public function: those that PyTorch runs internally, and those of other libraries."""

from fxsurgery.ops import macs
from fxsurgery.ops.macs import Macs
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules.call import Rule
from fxsurgery.ops.rules.lookup import transform
from fxsurgery.ops.rules.movement import same


def _run(
    name: str, kind: Kind, aten: str, rule: Rule | None = None, count: Macs | None = None, *, computes: bool = True
) -> Operator:
    return Operator(
        name=name,
        kind=kind,
        is_named=False,
        aten=tuple(aten.split()),
        rule=rule,
        macs=count,
        computes=computes,
    )


CONTRACTIONS = (
    _run("low_precision_product", Kind.CONTRACTION,
         "_int_mm _scaled_mm _scaled_mm_v2 _weight_int8pack_mm _weight_int4pack_mm", None, macs.product()),
    _run("fused_addmm", Kind.CONTRACTION, "_addmm_activation", None, macs.product(1)),
    _run("library_convolution", Kind.CONTRACTION,
         "cudnn_convolution mkldnn_convolution miopen_convolution miopen_depthwise_convolution _slow_conv2d_forward "
         "slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d "
         "_nnpack_spatial_convolution torchvision::deform_conv2d", None, macs.direct_convolution),
    _run("library_transposed_convolution", Kind.CONTRACTION,
         "cudnn_convolution_transpose miopen_convolution_transpose slow_conv_transpose2d slow_conv_transpose3d",
         None, macs.transposed_convolution),
    _run("fourier_transform", Kind.TRANSFORM, "_fft_r2c _fft_c2r _fft_c2c", transform),
)  # fmt: skip

COPIES = _run(
    "copies", Kind.MOVEMENT, "alias lift_fresh_copy view_of _reshape_alias_copy _neg_view", same, computes=False
)
PRELU = _run("prelu_kernel", Kind.POINTWISE, "_prelu_kernel")

WITHOUT_RULE = (
    _run("moved", Kind.MOVEMENT,
         "_chunk_cat _lazy_clone lift lift_fresh _pin_memory _pack_padded_sequence _unsafe_masked_index "
         "_unsafe_masked_index_put_accumulate view_as_real_copy _to_dense _to_sparse _to_sparse_csr _coalesce "
         "_coalesced values _values indices _indices sparse_coo_tensor _sparse_coo_tensor_with_dims_and_tensors "
         "sparse_mask _padded_dense_to_jagged_forward _jagged_to_padded_dense_forward _transform_bias_rescale_qkv "
         "cudnn_affine_grid_generator"),
    _run("made", Kind.CREATION, "empty_permuted fft_fftfreq fft_rfftfreq"),
    _run("reduced", Kind.REDUCTION,
         "segment_reduce _aminmax _logcumsumexp native_norm linalg__powsum renorm embedding_renorm _unique _unique2 "
         "unique_dim unique_dim_consecutive _is_all_true _is_any_true _sparse_sum _sparse_softmax "
         "_sparse_log_softmax _masked_softmax hash_tensor nonzero_static"),
    _run(
        "fused",
        Kind.FUSED,
         "linalg_cross _thnn_fused_gru_cell _thnn_fused_lstm_cell "
         "binary_cross_entropy mse_loss nll_loss_forward nll_loss2d_forward huber_loss smooth_l1_loss "
         "soft_margin_loss multi_margin_loss multilabel_margin_loss_forward _ctc_loss log_sigmoid_forward "
         "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask quantize_per_tensor "
         "quantize_per_tensor_dynamic quantize_per_channel dequantize int_repr "
         "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fused_moving_avg_obs_fq_helper "
         "_fused_moving_avg_obs_fq_helper_functional"),
    _run("normalized", Kind.NORM,
         "batch_norm_stats batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts "
         "batch_norm_update_stats _batch_norm_with_update _batch_norm_with_update_functional "
         "_native_batch_norm_legit_functional"),
    _run("drawn", Kind.RANDOM, "normal_functional _standard_gamma _sample_dirichlet _fused_dropout"),
    _run("resampled", Kind.RESAMPLING,
         "_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa _grid_sampler_2d_cpu_fallback "
         "cudnn_grid_sampler"),
    _run("regions", Kind.LOOKUP,
         "torchvision::nms torchvision::roi_align torchvision::roi_pool torchvision::ps_roi_align "
         "torchvision::ps_roi_pool"),
)  # fmt: skip
"""Operations without counted MACs, for which label propagation is unknown, by kind."""

DECLARED = (*CONTRACTIONS, COPIES, PRELU, *WITHOUT_RULE)
