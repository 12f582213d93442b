"""Inference of example inputs from a model alone, with a sentence that says what was assumed.

The model's own configuration comes first (`fxsurgery.capture.config_inputs`). Otherwise the first layer with weights
that forward reaches determines the channels, and trial runs determine the size. Among the usual sizes that the model
accepts, 224 is chosen if its smallest feature map is then 6 to 14 wide, else the size whose smallest map is closest
to 7. Images with one channel may be as small as 8; others are at least 32 if the model accepts that.
"""

import inspect
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from fxsurgery.argument_names import keyword, usage
from fxsurgery.capture.config_inputs import BATCH, Drawing, Shape, drawn, timm_shape, transformers_inputs
from fxsurgery.capture.layer_trace import LayerRecord
from fxsurgery.capture.meta_probe import Prober, ProbeRun
from fxsurgery.capture.preconditions import require_capturable
from fxsurgery.capture.sizes import (
    LATENT_SIDES,
    SEQUENCE_LENGTHS,
    SIGNAL_LENGTHS,
    VIDEO_SIZES,
    VOLUME_SIZES,
    Make,
    best_side,
    fitting,
)
from fxsurgery.errors import CaptureError, DataError
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import checked
from fxsurgery.surroundings import plain_surroundings

MAX_SHOWN = 5
"""Number of failed trials shown in a message."""
Guess = tuple[Inputs, str]
"""Inputs, and the sentence that says how they were inferred."""


@checked(CaptureError)
@plain_surroundings()
def guess_inputs(model: nn.Module) -> Guess:
    """Infer example inputs of two samples for `model`, and one sentence that says what was assumed.

    The inputs have the model's device and dtype. The model and the global random states are left unchanged.

    Returns:
        The inputs and the sentence.

    Raises:
        DataError: the model needs several inputs, or accepted none that was tried; the message shows the line to write.
        CaptureError: the model cannot be copied, or is known not to be capturable.

    Example:
        >>> inputs, assumption = guess_inputs(nn.Linear(8, 4))
        >>> tuple(inputs.args[0].shape)
        (2, 8)
    """
    require_capturable(model)
    search = _Search(model)
    for inputs, why in search.guesses():
        if search.runs(inputs, real=True):
            there = drawn(inputs).map(lambda x: x.to(search.prober.device))
            return there, f"inputs of {_shapes_text(there)}: {why}; {keyword('example_inputs')} overrides"
    raise DataError(search.advice())


class _Search:
    """The trial runs of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.prober = Prober(model)
        self._model = model
        self._drawing = Drawing(self.prober.dtype)
        self._failed = dict[str, str]()

    def guesses(self) -> Iterator[Guess]:
        """Yield guesses that ran on the meta device, likeliest first."""
        for inputs in transformers_inputs(self._model, self._drawing):
            if self.runs(inputs):
                yield inputs, "the main input and its sizes come from the model's configuration"
        if len(_required_parameters(self._model)) > 1:
            return
        layer = self._first_layer()
        yield from self._from_timm(layer)
        if layer is not None:
            yield from self._by_kind(layer)

    def runs(self, inputs: Inputs, *, real: bool = False) -> bool:
        """Return True if the model accepts these inputs as a batch."""
        return self._probe(inputs, real=real).ran

    def advice(self) -> str:
        """Return the error text: what was tried, and the line to write."""
        names = _required_parameters(self._model) or list(inspect.signature(self._model.forward).parameters)[:1]
        drawn = ", ".join("torch.randn(2, 3, 224, 224)" for _ in names)
        line = f"example_inputs=({drawn},)  # {', '.join(names)}; token ids: torch.randint(0, 1000, (2, 16))"
        failed = [f"{shape}: {error}" for shape, error in list(self._failed.items())[:MAX_SHOWN]]
        tried = f"Tried {'; '.join(failed)}. " if failed else ""
        return (
            f"cannot infer the inputs of forward({', '.join(names)}) from the model alone. {tried}Pass "
            f"{keyword('example_inputs')}, two samples of each input, batch first, in shapes that the model accepts; "
            f"for images: {usage(line, 'example_inputs')}"
        )

    def _probe(self, inputs: Inputs, *, real: bool = False) -> ProbeRun:
        trial = self.prober.run_real(inputs) if real else self.prober.run(inputs)
        if trial.error is not None:
            self._failed[_shapes_text(inputs)] = trial.error
        return trial

    def _first_layer(self) -> LayerRecord | None:
        """Return the first layer with weights that forward reaches; None if no trial input reaches one."""
        shapes = ((3, 64, 64), (1, 64, 64), (16, 8), (8,), (3, 8, 64, 64), (64, 64))
        # Some models check the input size before anything else.
        exact = ((3, 224, 224), (3, 32, 32), (1, 28, 28), (3, 256, 256), (3, 384, 384), (3, 16, 224, 224))
        for inputs in (*map(self._floats, shapes), self._ids((16,), 2), self._ids((), 2), *map(self._floats, exact)):
            if layers := self._probe(inputs).layers:
                self._failed.clear()
                return layers[0]
        return None

    def _from_timm(self, layer: LayerRecord | None) -> Iterator[Guess]:
        """Yield the size in the model's timm configuration, with the channels of the first convolution."""
        if shape := timm_shape(self._model):
            if layer is not None and layer.kind == "conv2d" and layer.seen[1:2] == (3,) and len(shape) == 3:
                shape = (layer.size[0], *shape[1:])
            if self.runs(inputs := self._floats(shape)):
                yield inputs, "the input size in the model's timm configuration"

    def _by_kind(self, layer: LayerRecord) -> Iterator[Guess]:
        kinds: dict[str, Callable[[LayerRecord], Iterator[Guess]]] = {
            "conv1d": self._signals, "conv2d": self._images, "conv3d": self._volumes, "linear": self._features,
            "layer norm": self._features, "recurrent": self._sequences, "attention": self._sequences,
            "embedding": self._tokens, "norm": self._normed, "transposed1d": self._codes, "transposed2d": self._codes,
            "transposed3d": self._codes,
        }  # fmt: skip
        yield from kinds[layer.kind](layer)

    def _images(self, layer: LayerRecord) -> Iterator[Guess]:
        for make, order in self._layouts(layer, 2):
            if found := best_side(make, layer, self._probe):
                yield make((found.size, found.size)), f"{_channels(layer)}{order}, size {found.why}"
                return

    def _codes(self, layer: LayerRecord) -> Iterator[Guess]:
        """Yield inputs of a generator or decoder, whose first layer is a transposed convolution over small maps."""
        for side in LATENT_SIDES:
            if self.runs(inputs := self._floats((layer.size[0], *(side,) * int(layer.kind[-2])))):
                yield inputs, f"{_channels(layer)}, size guessed: the first that runs"
                return

    def _volumes(self, layer: LayerRecord) -> Iterator[Guess]:
        sizes = (*VIDEO_SIZES, *VOLUME_SIZES) if layer.size[0] == 3 else (*VOLUME_SIZES, *VIDEO_SIZES)
        yield from self._first(layer, 3, sizes)

    def _signals(self, layer: LayerRecord) -> Iterator[Guess]:
        # A length equal to the number of channels would be ambiguous.
        yield from self._first(layer, 1, tuple((n,) for n in SIGNAL_LENGTHS if n != layer.size[0]))

    def _first(self, layer: LayerRecord, dims: int, sizes: tuple[Shape, ...]) -> Iterator[Guess]:
        """Yield the first of `sizes` that the model accepts; otherwise one that its linear layer requires."""
        for make, order in self._layouts(layer, dims):
            solved = ((n,) * dims for n in fitting(make, layer, self._probe))
            for size in (s for several in (sizes, solved) for s in several):
                if self.runs(make(size)):
                    yield make(size), f"{_channels(layer)}{order}, size guessed: the first that runs"
                    return

    def _features(self, layer: LayerRecord) -> Iterator[Guess]:
        maps = ((n, n) for n in (8, 14, 16, 32))
        for before in ((), *((n,) for n in SEQUENCE_LENGTHS), *maps):
            if self.runs(inputs := self._floats((*before, *layer.size))):
                guessed = ", length guessed: the first that runs" if before else ""
                yield inputs, f"{_plural(layer.size[-1], 'feature')} from {layer}{guessed}"
                return

    def _sequences(self, layer: LayerRecord) -> Iterator[Guess]:
        for steps in SEQUENCE_LENGTHS:
            inputs = self._floats((steps, *layer.size))
            trial = self._probe(inputs)
            if not trial.ran:
                continue
            time_first = not layer.batch_first and trial.layers[0].seen[0] == BATCH
            if time_first:
                inputs = self._floats((BATCH, *layer.size), batch=steps)
            order = ", time first" if time_first else ""
            yield inputs, f"{_plural(layer.size[0], 'feature')} from {layer}{order}, length guessed"
            return

    def _tokens(self, layer: LayerRecord) -> Iterator[Guess]:
        """Yield all lengths that run on the meta device; only a real run shows whether ids are in range."""
        for shape in (*((n,) for n in SEQUENCE_LENGTHS), ()):
            if self.runs(inputs := self._ids(shape, layer.size[0])):
                yield inputs, f"ids below {layer.size[0]} from {layer}, length guessed"

    def _normed(self, layer: LayerRecord) -> Iterator[Guess]:
        """Yield inputs of a model that starts with a batch norm: features, images, signals or volumes."""
        if self.runs(inputs := self._floats(layer.size[:1])):
            yield inputs, f"{_plural(layer.size[0], 'feature')} from {layer}"
            return
        for kind in (self._images, self._signals, self._volumes):
            yield from kind(layer)

    def _layouts(self, layer: LayerRecord, dims: int) -> Iterator[tuple[Make, str]]:
        """Yield layouts: channels first, channels last, and without channels if the model may add the one it uses."""
        channels = layer.size[0]
        yield lambda size: self._floats((channels, *size[:dims])), ""
        yield lambda size: self._floats((*size[:dims], channels)), " (in the last dim)"
        if channels == 1:
            yield lambda size: self._floats(size[:dims]), " (a dim that the model adds)"

    def _floats(self, shape: Shape, batch: int = BATCH) -> Inputs:
        return Inputs((self._drawing.noise(shape, batch),))

    def _ids(self, shape: Shape, below: int) -> Inputs:
        return Inputs((self._drawing.integers(shape, 0, below),))


def _required_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters of forward without a default, in order."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(model.forward).parameters.values()
    return [p.name for p in found if p.default is p.empty and p.kind not in kinds]


def _shapes_text(inputs: Inputs) -> str:
    named = [(f"{name} ", value) for name, value in inputs.kwargs.items()]
    every = [*(("", value) for value in inputs.args), *named]
    return ", ".join(f"{name}{tuple(value.shape)}{_kind(value)}" for name, value in every)


def _kind(tensor: Tensor) -> str:
    return "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"


def _channels(layer: LayerRecord) -> str:
    return f"{_plural(layer.size[0], 'channel')} from {layer}"


def _plural(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
