"""Tiny configurations of Hugging Face models are taken by name, with their outputs, and no part kept whole."""

import pytest
import torch

from capture.parity import assert_same, leaf_paths, taken
from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError

hf = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::DeprecationWarning")

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {
    **WIDTH,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {**WIDTH, "image_size": 32, "patch_size": 8}
TOKENS = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
SAID = {"input_ids": TOKENS, "attention_mask": MASK}
SEEN = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def built(name, config, settings, **more):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        kind = hf.models.whisper.modeling_whisper.WhisperEncoder if name == "WhisperEncoder" else getattr(hf, name)
        config = getattr(hf, config)(**settings)
        return kind._from_config(config, **more) if more else kind(config)


MODELS = [
    ("BertModel", "BertConfig", TEXT, SAID),
    ("BertForSequenceClassification", "BertConfig", TEXT, SAID),
    ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "num_key_value_heads": 2, "use_cache": False}, SAID),
    (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False,
         "bos_token_id": 1, "eos_token_id": 2},
        SAID,
    ),
    (
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        SAID,
    ),
    (
        "DebertaV2Model",
        "DebertaV2Config",
        {**TEXT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]},
        SAID,
    ),
    ("ViTModel", "ViTConfig", IMAGE, SEEN),
    ("CLIPVisionModel", "CLIPVisionConfig", IMAGE, SEEN),
    (
        "SwinModel",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        SEEN,
    ),
    (
        "WhisperEncoder",
        "WhisperConfig",
        {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "num_mel_bins": 8,
         "max_source_positions": 12},
        {"input_features": torch.randn(2, 8, 24)},
    ),
    (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {**WIDTH, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "layerdrop": 0.0},
        {"input_values": torch.randn(2, 400)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "settings", "inputs"), MODELS, ids=[m[0] for m in MODELS])
def test_a_model_is_taken_with_nothing_kept_as_leaf(name, config, settings, inputs):
    model = built(name, config, settings)
    program = taken(model, **inputs)
    assert not leaf_paths(program)
    assert isinstance(program(**inputs), hf.utils.ModelOutput)
    assert_same(program, model, **{key: torch.cat([value, value[:1]]) for key, value in inputs.items()})


@pytest.mark.parametrize("name", ["BertModel", "LlamaForCausalLM"])
def test_attention_spelled_out_is_taken_too(name):
    _, config, settings, inputs = next(m for m in MODELS if m[0] == name)
    assert not leaf_paths(taken(built(name, config, settings, attn_implementation="eager"), **inputs))


def test_a_model_that_returns_its_cache_says_how_not_to():
    settings = {**TEXT, "num_key_value_heads": 2}
    with pytest.raises(CaptureError, match="use_cache=False"):
        capture(built("LlamaForCausalLM", "LlamaConfig", settings), example_kwargs=SAID)


def test_layers_that_are_skipped_at_random_are_kept_as_leaf():
    _, config, settings, inputs = MODELS[-1]
    program = capture(built("Wav2Vec2Model", config, {**settings, "layerdrop": 0.5}), example_kwargs=inputs)
    assert leaf_paths(program) == ["encoder"]


@pytest.mark.parametrize(("name", "config", "settings", "inputs"), MODELS[:6], ids=[m[0] for m in MODELS[:6]])
def test_a_text_model_takes_every_length(name, config, settings, inputs):
    model = built(name, config, settings).eval()
    program = capture(model, example_kwargs=inputs)
    assert not program.notes
    for length in (1, 5, 14, 30):
        rows = torch.arange(length) % 9
        assert_same(program, model, **{key: value[:1].repeat(3, 1)[:, rows] for key, value in inputs.items()})
