"""transformers: architectures of the library from tiny configurations, two layers of width 64, random weights.

Text goes in by keyword, with a mask that hides the end of one of two sequences.
"""

import functools
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.coverage.samples import Sample
from fxsurgery.inputs import Inputs

VOCABULARY, LENGTH = 99, 12
WIDTH = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TEXT = {**WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
DECODER = {**TEXT, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
IMAGE = {**WIDTH, "image_size": 32, "patch_size": 8}
SMALL_BERT = {**TEXT, "embedding_size": 32}

MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BertModel": ("BertConfig", TEXT, "text"),
    "BertForSequenceClassification": ("BertConfig", TEXT, "text"),
    "DistilBertModel": (
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
        "text",
    ),
    "RobertaModel": ("RobertaConfig", TEXT, "text"),
    "ElectraModel": ("ElectraConfig", SMALL_BERT, "text"),
    "AlbertModel": ("AlbertConfig", SMALL_BERT, "text"),
    "MPNetModel": ("MPNetConfig", TEXT, "text"),
    "DebertaV2Model": (
        "DebertaV2Config",
        {**TEXT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]},
        "text",
    ),
    "GPT2Model": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False},
        "text",
    ),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False},
        "text",
    ),
    "LlamaForCausalLM": ("LlamaConfig", DECODER, "text"),
    "Qwen2ForCausalLM": ("Qwen2Config", DECODER, "text"),
    "MistralForCausalLM": ("MistralConfig", DECODER, "text"),
    "Gemma2ForCausalLM": ("Gemma2Config", {**DECODER, "head_dim": 16}, "text"),
    "OPTForCausalLM": (
        "OPTConfig",
        {**TEXT, "ffn_dim": 96, "word_embed_proj_dim": 64, "use_cache": False, "pad_token_id": 0},
        "text",
    ),
    "T5EncoderModel": (
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4},
        "text",
    ),
    "ViTModel": ("ViTConfig", IMAGE, "image"),
    "DeiTModel": ("DeiTConfig", IMAGE, "image"),
    "BeitModel": ("BeitConfig", {**IMAGE, "use_relative_position_bias": True}, "image"),
    "Dinov2Model": ("Dinov2Config", IMAGE, "image"),
    "CLIPVisionModel": ("CLIPVisionConfig", IMAGE, "image"),
    "SwinModel": (
        "SwinConfig",
        {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "picture",
    ),
    "ConvNextModel": (
        "ConvNextConfig",
        {"num_stages": 2, "hidden_sizes": [32, 64], "depths": [2, 2]},
        "picture",
    ),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
         "decoder_hidden_size": 32, "num_labels": 7},
        "picture",
    ),
    "MobileViTModel": (
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96]},
        "picture",
    ),
    "WhisperEncoder": (
        "WhisperConfig",
        {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
         "num_mel_bins": 16, "max_source_positions": 24},
        "mel",
    ),
    "Wav2Vec2Model": (
        "Wav2Vec2Config",
        {**WIDTH, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
         "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
         "mask_time_prob": 0.0},
        "sound",
    ),
}  # fmt: skip
"""By class: its configuration's class, what is set of it, and the kind of input."""


def samples() -> list[Sample]:
    """The list, in the order of `MODELS`."""
    return [Sample(name, functools.partial(_build, name)) for name in MODELS]


def _build(name: str) -> tuple[nn.Module, Inputs]:
    config_name, settings, kind = MODELS[name]
    config = getattr(hf, config_name)(**settings)
    return _class(name)(config), Inputs((), _inputs(kind))


def _class(name: str) -> Any:  # noqa: ANN401
    if name == "WhisperEncoder":
        return hf.models.whisper.modeling_whisper.WhisperEncoder
    return getattr(hf, name)


def _inputs(kind: str) -> dict[str, Tensor]:
    if kind == "text":
        mask = torch.ones(2, LENGTH, dtype=torch.long)
        mask[1, LENGTH - 3 :] = 0
        return {"input_ids": torch.randint(3, VOCABULARY, (2, LENGTH)), "attention_mask": mask}
    if kind == "mel":
        return {"input_features": torch.randn(2, 16, 48)}
    if kind == "sound":
        return {"input_values": torch.randn(2, 1600)}
    size = 32 if kind == "image" else 64
    return {"pixel_values": torch.randn(2, 3, size, size)}
