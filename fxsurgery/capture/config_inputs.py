"""Example inputs derived from a model's own configuration: that of timm or Hugging Face Transformers."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxsurgery.inputs import Inputs

Shape: TypeAlias = tuple[int, ...]
BATCH = 2
TEXT_LENGTH = 16
IMAGE_SIZES = (224, 256, 64, 32, 384, 512)
AUDIO_LENGTHS = (16000, 4000, 1600, 64000)


def drawn(inputs: Inputs) -> Inputs:
    """Return the inputs with seeded Gaussian noise in place of meta tensors."""
    generator = torch.Generator().manual_seed(0)
    return inputs.map(lambda x: torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_meta else x)


class Drawing:
    """Draws seeded inputs of two samples; noise stays on the meta device until `drawn` fills it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)

    def noise(self, shape: Shape, batch: int = BATCH) -> Tensor:
        """Return a tensor of shape (batch, *shape) on the meta device; `drawn` gives it values."""
        return torch.empty(batch, *shape, dtype=self._dtype, device="meta")

    def integers(self, shape: Shape, low: int, high: int) -> Tensor:
        """Return random integers in [low, high), of shape (batch, *shape) and dtype int64."""
        return torch.randint(min(low, high - 1), high, (BATCH, *shape), generator=self._generator)


def timm_shape(model: nn.Module) -> Shape | None:
    """Return the sample shape from the configuration that timm attaches to its models; None without one."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    shape = config.get("input_size") if isinstance(config, Mapping) else None
    return tuple(map(int, shape)) if shape else None


def transformers_inputs(model: nn.Module, drawing: Drawing) -> Iterator[Inputs]:
    """Yield keyword inputs that a Hugging Face model may accept, likeliest first; none for any other model."""
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(name, str) or config is None:
        return
    parameters = inspect.signature(model.forward).parameters
    for named in _BY_MAIN_INPUT.get(name, _text_inputs)(config, drawing):
        yield Inputs((), {key: value for key, value in named.items() if key in parameters})


def _text_inputs(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    inner = getattr(config, "text_config", None) or config
    vocabulary = getattr(inner, "vocab_size", None) or 2
    length = min(TEXT_LENGTH, getattr(inner, "max_position_embeddings", None) or TEXT_LENGTH)
    ids = drawing.integers((length,), 3, vocabulary)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    yield text
    yield {**text, "decoder_input_ids": ids}
    yield {**text, "pixel_values": drawing.noise(_image_shape(config))}


def _image_inputs(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    channels, *sides = _image_shape(config)
    for size in (tuple(sides), *((n, n) for n in IMAGE_SIZES)):
        yield {"pixel_values": drawing.noise((channels, *size))}
    yield from _text_inputs(config, drawing)


def _audio_inputs(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    yield from ({"input_values": drawing.noise((length,))} for length in AUDIO_LENGTHS)
    frames, mels = getattr(config, "max_length", None) or 1024, getattr(config, "num_mel_bins", None) or 128
    yield {"input_values": drawing.noise((frames, mels))}


def _spectrogram_inputs(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    mels = getattr(config, "num_mel_bins", None) or 80
    frames = 2 * (getattr(config, "max_source_positions", None) or 1500)
    features = {"input_features": drawing.noise((mels, frames))}
    yield features
    ids = drawing.integers((TEXT_LENGTH,), 3, getattr(config, "vocab_size", None) or 4)
    yield {**features, "decoder_input_ids": ids}


def _image_shape(config: Any) -> Shape:  # noqa: ANN401
    inner = getattr(config, "vision_config", None) or config
    size = getattr(inner, "image_size", None) or IMAGE_SIZES[0]
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return (getattr(inner, "num_channels", None) or 3, *sides)


_BY_MAIN_INPUT: dict[str, Callable[[Any, Drawing], Iterator[dict[str, Tensor]]]] = {
    "pixel_values": _image_inputs, "input_values": _audio_inputs, "input_features": _spectrogram_inputs,
}  # fmt: skip
