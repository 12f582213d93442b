"""What a model says of its own inputs: timm's configuration, and that of Hugging Face."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxsurgery.inputs import Inputs

Shape: TypeAlias = tuple[int, ...]
BATCH = 2
LENGTH = 16
SIDES = (224, 256, 64, 32, 384, 512)
SOUNDS = (16000, 4000, 1600, 64000)


def drawn(inputs: Inputs) -> Inputs:
    """The inputs with Gaussian noise for what has no numbers, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return inputs.map(lambda x: torch.randn(x.shape, generator=generator).to(x.dtype) if x.is_meta else x)


class Drawing:
    """Draws inputs of two samples, the same every time; noise only when it is needed, which may be large."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)

    def noise(self, shape: Shape, batch: int = BATCH) -> Tensor:
        """(batch, *shape), on the meta device: `drawn` gives it numbers."""
        return torch.empty(batch, *shape, dtype=self._dtype, device="meta")

    def numbers(self, shape: Shape, low: int, high: int) -> Tensor:
        """From `low` to below `high`: (batch, *shape), int64."""
        return torch.randint(min(low, high - 1), high, (BATCH, *shape), generator=self._generator)


def timm_shape(model: nn.Module) -> Shape | None:
    """The shape of a sample in the configuration that timm leaves on its models."""
    said = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    shape = said.get("input_size") if isinstance(said, Mapping) else None
    return tuple(map(int, shape)) if shape else None


def transformers_inputs(model: nn.Module, drawing: Drawing) -> Iterator[Inputs]:
    """By name, what a Hugging Face model may take, the likeliest first; nothing for any other model."""
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(name, str) or config is None:
        return
    known = inspect.signature(model.forward).parameters
    for named in _KINDS.get(name, _texts)(config, drawing):
        yield Inputs((), {key: value for key, value in named.items() if key in known})


def _texts(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    inner = getattr(config, "text_config", None) or config
    words = getattr(inner, "vocab_size", None) or 2
    length = min(LENGTH, getattr(inner, "max_position_embeddings", None) or LENGTH)
    ids = drawing.numbers((length,), 3, words)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    yield text
    yield {**text, "decoder_input_ids": ids}
    yield {**text, "pixel_values": drawing.noise(_image(config))}


def _images(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    channels, *sides = _image(config)
    for size in (tuple(sides), *((n, n) for n in SIDES)):
        yield {"pixel_values": drawing.noise((channels, *size))}
    yield from _texts(config, drawing)


def _sounds(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    yield from ({"input_values": drawing.noise((length,))} for length in SOUNDS)
    frames, mels = getattr(config, "max_length", None) or 1024, getattr(config, "num_mel_bins", None) or 128
    yield {"input_values": drawing.noise((frames, mels))}


def _spectra(config: Any, drawing: Drawing) -> Iterator[dict[str, Tensor]]:  # noqa: ANN401
    mels = getattr(config, "num_mel_bins", None) or 80
    frames = 2 * (getattr(config, "max_source_positions", None) or 1500)
    features = {"input_features": drawing.noise((mels, frames))}
    yield features
    ids = drawing.numbers((LENGTH,), 3, getattr(config, "vocab_size", None) or 4)
    yield {**features, "decoder_input_ids": ids}


def _image(config: Any) -> Shape:  # noqa: ANN401
    inner = getattr(config, "vision_config", None) or config
    size = getattr(inner, "image_size", None) or SIDES[0]
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return (getattr(inner, "num_channels", None) or 3, *sides)


_KINDS: dict[str, Callable[[Any, Drawing], Iterator[dict[str, Tensor]]]] = {
    "pixel_values": _images, "input_values": _sounds, "input_features": _spectra,
}  # fmt: skip
