"""Draws graphs, and passes to try on a program: `graphs()`, `draw_move(data, program)`.

A graph is drawn the way a model is written: a layer with its norm and activation, a residual block, a join of
branches. Each reads the newest maps more often than old ones, and what nobody has read goes to the first head.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from itertools import islice
from typing import Literal, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from conformance import layers
from conformance.graphs import (
    Act,
    Again,
    Attention,
    Chunk,
    Conv,
    Dropout,
    FeedForward,
    Graph,
    Head,
    Join,
    Norm,
    Pool,
    Shape,
    Shuffle,
    SqueezeExcite,
    Step,
    Tied,
    Transposed,
    Upsample,
    shapes_given,
)
from fxsurgery.passes import ALL
from fxsurgery.program import Program
from fxsurgery.surgery import Rewrite

CHANNELS = (4, 6, 8, 12)
MAX_CHANNELS, MAX_PIXELS, MAX_FLAT = 24, 16, 400


class Sketch:
    """A graph under way: its steps, the shape of every map, and which maps nobody has read."""

    def __init__(self, draw: st.DrawFn, image: Shape) -> None:
        self.draw = draw
        self.steps = list[Step]()
        self.shapes = [image]
        self.unread, self.closed = {0}, set[int]()
        self.layers = list[int]()
        """The maps that a conv gave."""

    def pick(self, *among: object) -> object:
        return self.draw(st.sampled_from(among))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    @property
    def maps(self) -> list[int]:
        """Those that can be read, the newest first."""
        return [i for i in reversed(range(len(self.shapes))) if i not in self.closed]

    def source(self, fits: Callable[[Shape], bool] = lambda _: True) -> int | None:
        """A map of a fitting shape, more often than not the newest one; `None` where there is none."""
        with_image = len(self.maps) == 1 or self.number(0, 3) == 3
        fitting = [i for i in self.maps if fits(self.shapes[i]) and (i or with_image)]
        if not fitting:
            return None
        return fitting[0] if self.draw(st.booleans()) is False else self.pick(*fitting)

    def add(self, step: Step) -> int:
        """Take the step; the first map it gives."""
        own = [self.shapes[i] for i in step.reads]
        first = len(self.shapes)
        if isinstance(step, (Again, Tied)):
            like = self.steps[self.made_by(step.of)]
            given = shapes_given(like.build(self.shapes[like.at]), own)
        else:
            given = shapes_given(step.build(*own), own)
        self.shapes += given
        self.unread = self.unread - set(step.reads) | set(range(first, len(self.shapes)))
        self.steps.append(step)
        return first

    def made_by(self, index: int) -> int:
        """The number of the step that gave a map."""
        given = 1
        for number, step in enumerate(self.steps):
            given += (step.cut if isinstance(step.cut, int) else len(step.cut)) if isinstance(step, Chunk) else 1
            if index < given:
                return number
        raise IndexError(index)

    def divisor(self, *numbers: int) -> int:
        """A common divisor above 1, or 1."""
        return self.pick(1, *(d for d in range(2, min(numbers) + 1) if all(n % d == 0 for n in numbers)))

    def conv(self, at: int, out: int | None = None, *, same: bool = False) -> int:
        channels, *spatial = self.shapes[at]
        kind = self.pick("plain", "pointwise", "strided", "grouped", "depthwise", "dilated", "odd")
        out = out or self.pick(channels, *CHANNELS)
        bias = self.draw(st.booleans())
        step = Conv(at, out, bias=bias)
        if kind == "pointwise" or min(spatial) < 2:
            step = Conv(at, out, 1, padding=0, bias=bias)
        elif kind == "strided" and not same:
            step = Conv(at, out, self.pick(3, 2, 1), 2, self.pick(1, 0) if min(spatial) > 2 else 1, bias=bias)
        elif kind == "grouped":
            step = Conv(at, out, groups=self.divisor(channels, out), bias=bias)
        elif kind == "depthwise":
            out = out if same else channels * self.pick(1, 2)
            step = Conv(at, out, groups=channels if out % channels == 0 else 1, bias=bias)
        elif kind == "dilated":
            step = Conv(at, out, padding=2, dilation=2, bias=bias)
        elif kind == "odd":
            mode = self.pick("zeros", "reflect", "replicate", "circular")
            tall = (3, 1)[-len(spatial) :]
            step = self.pick(
                Conv(at, out, padding="same", bias=bias, mode=mode),
                Conv(at, out, tall, padding=tuple(k // 2 for k in tall), bias=bias),
                Conv(at, out, padding=1, bias=bias, mode=mode),
                *([Conv(at, out, padding=0, bias=bias)] if min(spatial) > 3 and not same else []),
            )
        made = self.add(step)
        self.layers.append(made)
        return made

    def norm(self, at: int) -> int:
        channels, *spatial = self.shapes[at]
        positions = 1
        for extent in spatial:
            positions *= extent
        kind = self.pick("batch", "batch", "batch", "group", "layer", "layer-all", "instance")
        affine = not (self.draw(st.booleans()) and self.draw(st.booleans()))
        if kind == "group":
            groups = self.divisor(channels)
            return self.add(Norm(at, kind, groups=1 if channels // groups * positions < 4 else groups, affine=affine))
        if kind == "instance" and positions < 4:
            kind = "batch"
        running = kind == "batch" if self.number(0, 4) < 4 else kind == "instance"
        if kind.startswith("layer"):
            return self.add(Norm(at, kind, affine=affine))
        return self.add(Norm(at, kind, affine=affine, running=running))

    def act(self, at: int) -> int:
        often = ("relu", "F.relu") * 3
        kind = self.pick(*often, *layers.ACTIVATIONS, *layers.FUNCTIONS, *layers.INPLACE)
        if kind in layers.INPLACE:
            if at not in self.unread or not isinstance(self.steps[self.made_by(at)], (Conv, Norm)):
                kind = "F.relu"
            else:
                self.closed.add(at)
        return self.add(Act(at, kind))

    def block(self, at: int, out: int | None = None, *, same: bool = False) -> int:
        """A conv, then a norm or none, then an activation or none."""
        made = self.conv(at, out, same=same)
        if self.draw(st.booleans()):
            made = self.norm(made)
        return self.act(made) if self.draw(st.booleans()) else made


def layer(sketch: Sketch) -> None:
    sketch.block(sketch.source())


def residual(sketch: Sketch) -> None:
    if (at := sketch.source()) is None or at == 0:
        return layer(sketch)
    made = sketch.block(at, same=True) if sketch.draw(st.booleans()) else at
    made = sketch.block(made, sketch.shapes[at][0], same=True)
    if sketch.shapes[made] == sketch.shapes[at]:
        join(sketch, [(made, at)])
    return None


def join(sketch: Sketch, pairs: list[tuple[int, int]] | None = None) -> None:
    """Two maps of one shape, by arithmetic, or of one size, by concatenation."""
    maps, shapes = sketch.maps, sketch.shapes
    if pairs is None:
        pairs = [(a, b) for a in maps for b in maps if a > b > 0 and shapes[a][1:] == shapes[b][1:]]
    pairs = [(a, b) for a, b in pairs if shapes[a] == shapes[b] or shapes[a][0] + shapes[b][0] <= MAX_CHANNELS]
    if not pairs:
        return
    a, b = sketch.pick(*pairs)
    how = sketch.pick("+", "add", "iadd", "-", "*", "cat") if shapes[a] == shapes[b] else "cat"
    if how == "cat" and shapes[a][0] + shapes[b][0] > MAX_CHANNELS:
        how = "+"
    if how == "iadd":
        if a in sketch.unread and isinstance(sketch.steps[sketch.made_by(a)], (Conv, Norm)):
            sketch.closed.add(a)
        else:
            how = "+"
    sketch.add(Join(a, b, how))


def cut(sketch: Sketch) -> None:
    """Pieces along the channels; one of them may be worked on, and all joined again."""
    at = sketch.source(lambda s: s[0] >= 4)
    if at is None or at == 0:
        return layer(sketch)
    channels = sketch.shapes[at][0]
    sizes = sketch.pick((channels // 2, channels - channels // 2), (2, channels - 2), (1, 1, channels - 2))
    pieces = sketch.pick(2, *([3] if channels % 3 == 0 else []), sizes) if channels % 2 == 0 else sizes
    first = sketch.add(Chunk(at, pieces))
    if sketch.draw(st.booleans()):
        right = sketch.block(first + 1, same=True)
        if sketch.shapes[right][1:] == sketch.shapes[first][1:]:
            sketch.add(Join(first, right, "cat"))
    return None


def pool(sketch: Sketch) -> None:
    at = sketch.source(lambda s: min(s[1:]) >= 3)
    if at is None:
        return layer(sketch)
    kernel = sketch.pick(2, 3)
    padding = sketch.pick(0, 1) if kernel == 3 else 0
    ceil = sketch.draw(st.booleans())
    sketch.add(Pool(at, sketch.pick("max", "avg"), kernel, sketch.pick(2, 1), padding, ceil))
    return None


def resample(sketch: Sketch) -> None:
    """A map made larger."""
    at = sketch.source(lambda s: max(s[1:]) * 2 <= MAX_PIXELS)
    if at is None or at == 0:
        return layer(sketch)
    if sketch.draw(st.booleans()):
        sketch.add(Upsample(at))
        return None
    channels, out = sketch.shapes[at][0], sketch.pick(*CHANNELS)
    kernel, padding, more = sketch.pick((2, 0, 0), (3, 1, 1), (4, 1, 0))
    bias = sketch.draw(st.booleans())
    made = sketch.add(Transposed(at, out, kernel, 2, padding, more, sketch.divisor(channels, out), bias))
    sketch.layers.append(made)
    if sketch.draw(st.booleans()):
        sketch.norm(made)
    return None


def shuffle(sketch: Sketch) -> None:
    at = sketch.source(lambda s: s[0] % 2 == 0)
    if at is None or at == 0:
        return layer(sketch)
    sketch.add(Shuffle(at, sketch.pick(2, sketch.shapes[at][0] // 2)))
    return None


def gate(sketch: Sketch) -> None:
    if at := sketch.source(lambda s: s[0] >= 4):
        sketch.add(SqueezeExcite(at, sketch.pick(4, 2), sketch.draw(st.booleans())))


def transform(sketch: Sketch) -> None:
    """Attention between the positions, or linear layers on the channels."""
    at = sketch.source(lambda s: s[0] >= 4)
    if not at:
        return
    heads = sketch.pick(2, 1) if sketch.shapes[at][0] % 2 == 0 else 1
    kinds = [Attention(at, heads, kind) for kind in ("qkv", "apart", "module")]
    sketch.add(sketch.pick(*kinds, FeedForward(at, sketch.pick(8, 12))))


def pointwise(sketch: Sketch) -> None:
    if at := sketch.source():
        sketch.pick(sketch.norm, sketch.act, lambda at: sketch.add(Dropout(at)))(at)


def cell(sketch: Sketch) -> None:
    """ECToNAS's: conv, pool, norm, activation."""
    at = sketch.source(lambda s: min(s[1:]) >= 4)
    if at is None:
        return
    at = sketch.add(Conv(at, sketch.pick(*CHANNELS)))
    at = sketch.add(Pool(at, sketch.pick("max", "avg"), ceil=sketch.draw(st.booleans())))
    sketch.add(Act(sketch.add(Norm(at))))


def twice(sketch: Sketch) -> None:
    """A conv called again, on another map of as many channels, or another conv that has its weight."""
    choices = []
    for of in sketch.layers:
        step = sketch.steps[sketch.made_by(of)]
        wanted = sketch.shapes[step.at][0]
        fitting = [at for at in sketch.maps if at and sketch.shapes[at][0] == wanted and _takes(step, sketch, at)]
        choices += [(at, of) for at in fitting]
    if not choices:
        return layer(sketch)
    at, of = sketch.pick(*choices)
    sketch.add(sketch.pick(Again, Tied)(at, of))
    return None


def _takes(step: Step, sketch: Sketch, at: int) -> bool:
    spatial = sketch.shapes[at][1:]
    limit = MAX_PIXELS // 2 if isinstance(step, Transposed) else MAX_PIXELS
    return min(spatial) >= min(4, *sketch.shapes[step.at][1:]) and max(spatial) <= limit


PARTS = (layer, residual, join, cell, transform, gate, pointwise, cut, pool, twice, resample, shuffle)


@st.composite
def graphs(draw: st.DrawFn, max_parts: int = 10) -> Graph:
    """Graphs of images 8 to 12 pixels a side, or of sequences, with at most 24 channels."""
    image = draw(st.sampled_from([(3, 8, 8), (3, 9, 12), (4, 10, 8), (3, 12)]))
    sketch = Sketch(draw, image)
    sketch.block(0)
    for _ in range(draw(st.integers(0, max_parts))):
        sketch.pick(*PARTS)(sketch)
    left = [i for i in sorted(sketch.unread) if i not in sketch.closed]
    flat = sum(_numel(sketch.shapes[i]) for i in left)
    how = sketch.pick("mean", "adaptive", "max", *(["flatten"] if flat <= MAX_FLAT else []))
    heads = [Head(tuple(left), how, sketch.pick((), (8,), (10, 6), (6, 6)), sketch.pick(4, 3))]
    if draw(st.booleans()):
        at = sketch.source()
        heads.append(Head((at,), sketch.pick("map", "mean")))
    frozen = (sketch.pick(*range(1, len(sketch.shapes))),) if sketch.number(0, 5) == 5 else ()
    dtype = "float64" if sketch.number(0, 7) == 7 else "float32"
    return Graph(image, tuple(sketch.steps), tuple(heads), draw(st.integers(0, 3)), dtype, frozen)


def _numel(shape: Shape) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


OPENS = {"insert-gates": "remove-gates", "elasticise": "extract-subnet"}
"""Passes that make room for another, which finds nothing to do elsewhere."""


def draw_move(data: st.DataObject, program: Program, types: Iterable[type[Rewrite]] = ()) -> Rewrite | None:
    """One of the candidates of one of `types`, by default of every pass; `None` where none has any."""
    names = {t.name: t for t in types or ALL.values()}
    opened = OPENS.get(program.log[-1].partition("(")[0]) if program.log else None
    if opened in names and data.draw(st.booleans()):
        names = {opened: names[opened]}
    while names:
        name = data.draw(st.sampled_from(sorted(names)))
        if moves := list(islice(names.pop(name).candidates(program), 40)):
            return data.draw(st.sampled_from(moves))
    return None


def draw_variant(data: st.DataObject, move: Rewrite) -> Rewrite:
    """The move, or the same with another value of one option that has a list of them, or is true or false.

    It need not be applicable: a `SpecError` or a refusal is a good answer.
    """
    hints = get_type_hints(type(move))
    options = [(f.name, v) for f in fields(move) for v in _values(hints[f.name]) if v != getattr(move, f.name)]
    if not options or data.draw(st.integers(0, 2)) < 2:
        return move
    name, value = data.draw(st.sampled_from(options))
    return replace(move, **{name: value})


def _values(hint: object) -> tuple[object, ...]:
    return (False, True) if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()
