"""Example inputs worked out from a model alone, and a sentence that says what was assumed.

What the model says of itself comes first (`fxsurgery.capture.config_inputs`). Else the first layer with weights that
the forward reaches tells the channels, and trial runs tell the size: of the usual ones that the model takes, 224 if its
smallest feature map is then 6 to 14 wide, else the one whose smallest map is nearest to 7. Images of one channel may
be as small as 8, others are 32 at least where the model takes that.
"""

import inspect
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from fxsurgery.argument_names import keyword, usage
from fxsurgery.capture.config_inputs import BATCH, Drawing, Shape, drawn, timm_shape, transformers_inputs
from fxsurgery.capture.layer_trace import LayerRecord
from fxsurgery.capture.meta_probe import Prober, ProbeRun
from fxsurgery.capture.preconditions import require_takeable
from fxsurgery.capture.sizes import CLIPS, CODES, LENGTHS, STEPS, VOLUMES, Make, best_side, fitting
from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import plain_surroundings

SHOWN = 5
"""Failed tries in a message."""
Guess = tuple[Inputs, str]


@plain_surroundings()
def guess_inputs(model: nn.Module) -> Guess:
    """Example inputs of two samples for `model`, and one sentence that says what was assumed.

    They are on the model's device and of its precision. The model stays as it is, and so do the random states.

    Raises:
        DataError: it needs several inputs, or took none of those tried; the message has the line to write.
        CaptureError: the model cannot be copied, or is known not to be captured.
    """
    require_takeable(model)
    search = _Search(model)
    for inputs, why in search.guesses():
        if search.runs(inputs, for_real=True):
            there = drawn(inputs).map(lambda x: x.to(search.prober.device))
            return there, f"inputs of {_described(there)}: {why}; {keyword('example_inputs')} overrides"
    raise DataError(search.advice())


class _Search:
    """The tries on one model."""

    def __init__(self, model: nn.Module) -> None:
        self.prober = Prober(model)
        self._model = model
        self._drawing = Drawing(self.prober.dtype)
        self._failed = dict[str, str]()

    def guesses(self) -> Iterator[Guess]:
        """The likeliest first; each ran without numbers."""
        for inputs in transformers_inputs(self._model, self._drawing):
            if self.runs(inputs):
                yield inputs, "the main input and the sizes of the model's configuration"
        if len(_required(self._model)) > 1:
            return
        layer = self._first_layer()
        yield from self._from_timm(layer)
        if layer is not None:
            yield from self._by_kind(layer)

    def runs(self, inputs: Inputs, *, for_real: bool = False) -> bool:
        """Whether the model takes these inputs, as a batch."""
        return self._try(inputs, for_real=for_real).ran

    def advice(self) -> str:
        """What was tried, and the line to write."""
        names = _required(self._model) or list(inspect.signature(self._model.forward).parameters)[:1]
        drawn = ", ".join("torch.randn(2, 3, 224, 224)" for _ in names)
        line = f'fxsurgery.optimize(model, method="dnal", example_inputs=({drawn},))  # {", ".join(names)}'
        failed = [f"{shape}: {error}" for shape, error in list(self._failed.items())[:SHOWN]]
        tried = f"Tried {'; '.join(failed)}. " if failed else ""
        return (
            f"cannot tell from the model alone what its forward({', '.join(names)}) takes. {tried}Give "
            f"{keyword('example_inputs')}, two samples of each, batch first, of the shapes that the model takes; for "
            f"images: {usage(line, 'example_inputs')}"
        )

    def _try(self, inputs: Inputs, *, for_real: bool = False) -> ProbeRun:
        trial = self.prober.wet(inputs) if for_real else self.prober.run(inputs)
        if trial.error is not None:
            self._failed[_described(inputs)] = trial.error
        return trial

    def _first_layer(self) -> LayerRecord | None:
        """The first layer with weights that the forward reaches, whatever comes before it."""
        shapes = ((3, 64, 64), (1, 64, 64), (16, 8), (8,), (3, 8, 64, 64), (64, 64))
        # Some check the size before anything else.
        exact = ((3, 224, 224), (3, 32, 32), (1, 28, 28), (3, 256, 256), (3, 384, 384), (3, 16, 224, 224))
        for inputs in (*map(self._floats, shapes), self._ids((16,), 2), self._ids((), 2), *map(self._floats, exact)):
            if layers := self._try(inputs).layers:
                self._failed.clear()
                return layers[0]
        return None

    def _from_timm(self, layer: LayerRecord | None) -> Iterator[Guess]:
        """The size in timm's configuration, with the channels of the first convolution."""
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
            if found := best_side(make, layer, self._try):
                yield make((found.size, found.size)), f"{_channels(layer)}{order}, size {found.why}"
                return

    def _codes(self, layer: LayerRecord) -> Iterator[Guess]:
        """A transposed convolution in front of everything: a generator or decoder, which makes maps of small ones."""
        for side in CODES:
            if self.runs(inputs := self._floats((layer.size[0], *(side,) * int(layer.kind[-2])))):
                yield inputs, f"{_channels(layer)}, size guessed: the first that runs"
                return

    def _volumes(self, layer: LayerRecord) -> Iterator[Guess]:
        sizes = (*CLIPS, *VOLUMES) if layer.size[0] == 3 else (*VOLUMES, *CLIPS)
        yield from self._first(layer, 3, sizes)

    def _signals(self, layer: LayerRecord) -> Iterator[Guess]:
        # As long as there are channels, and nobody could tell the one from the other.
        yield from self._first(layer, 1, tuple((n,) for n in LENGTHS if n != layer.size[0]))

    def _first(self, layer: LayerRecord, dims: int, sizes: tuple[Shape, ...]) -> Iterator[Guess]:
        """The first of the sizes that the model takes; else one that its linear layer asks for."""
        for make, order in self._layouts(layer, dims):
            solved = ((n,) * dims for n in fitting(make, layer, self._try))
            for size in (s for several in (sizes, solved) for s in several):
                if self.runs(make(size)):
                    yield make(size), f"{_channels(layer)}{order}, size guessed: the first that runs"
                    return

    def _features(self, layer: LayerRecord) -> Iterator[Guess]:
        maps = ((n, n) for n in (8, 14, 16, 32))
        for before in ((), *((n,) for n in STEPS), *maps):
            if self.runs(inputs := self._floats((*before, *layer.size))):
                guessed = ", length guessed: the first that runs" if before else ""
                yield inputs, f"{_counted(layer.size[-1], 'feature')} from {layer}{guessed}"
                return

    def _sequences(self, layer: LayerRecord) -> Iterator[Guess]:
        for steps in STEPS:
            inputs = self._floats((steps, *layer.size))
            trial = self._try(inputs)
            if not trial.ran:
                continue
            time_first = not layer.batch_first and trial.layers[0].seen[0] == BATCH
            if time_first:
                inputs = self._floats((BATCH, *layer.size), batch=steps)
            order = ", time first" if time_first else ""
            yield inputs, f"{_counted(layer.size[0], 'feature')} from {layer}{order}, length guessed"
            return

    def _tokens(self, layer: LayerRecord) -> Iterator[Guess]:
        """All that run without numbers: whether an id has its row only a run with numbers tells."""
        for shape in (*((n,) for n in STEPS), ()):
            if self.runs(inputs := self._ids(shape, layer.size[0])):
                yield inputs, f"ids below {layer.size[0]} from {layer}, length guessed"

    def _normed(self, layer: LayerRecord) -> Iterator[Guess]:
        """A batch norm in front of everything: of features, images, signals or volumes."""
        if self.runs(inputs := self._floats(layer.size[:1])):
            yield inputs, f"{_counted(layer.size[0], 'feature')} from {layer}"
            return
        for kind in (self._images, self._signals, self._volumes):
            yield from kind(layer)

    def _layouts(self, layer: LayerRecord, dims: int) -> Iterator[tuple[Make, str]]:
        """Channels before space, then after it, then none where the model adds the one that it works on."""
        channels = layer.size[0]
        yield lambda size: self._floats((channels, *size[:dims])), ""
        yield lambda size: self._floats((*size[:dims], channels)), " (in the last dim)"
        if channels == 1:
            yield lambda size: self._floats(size[:dims]), " (a dim that the model adds)"

    def _floats(self, shape: Shape, batch: int = BATCH) -> Inputs:
        return Inputs((self._drawing.noise(shape, batch),))

    def _ids(self, shape: Shape, below: int) -> Inputs:
        return Inputs((self._drawing.numbers(shape, 0, below),))


def _required(model: nn.Module) -> list[str]:
    """The parameters of the forward that a call must give, in their order."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(model.forward).parameters.values()
    return [p.name for p in found if p.default is p.empty and p.kind not in kinds]


def _described(inputs: Inputs) -> str:
    named = [(f"{name} ", value) for name, value in inputs.kwargs.items()]
    every = [*(("", value) for value in inputs.args), *named]
    return ", ".join(f"{name}{tuple(value.shape)}{_kind(value)}" for name, value in every)


def _kind(tensor: Tensor) -> str:
    return "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"


def _channels(layer: LayerRecord) -> str:
    return f"{_counted(layer.size[0], 'channel')} from {layer}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
