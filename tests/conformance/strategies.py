"""Draws graphs, and passes to try on a program: `graphs()`, `draw_move(data, program)`.

A graph is drawn the way a model is written: a layer with its norm and activation, a residual block, a join of
branches. Each reads the newest maps more often than old ones, and what nobody has read goes to the first head.
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import islice
from typing import Literal, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from conformance.graphs import Graph
from conformance.sketch import CHANNELS, MAX_CHANNELS, MAX_FLAT, MAX_PIXELS, Sketch
from conformance.steps import (
    Act,
    Again,
    Attention,
    Chunk,
    Conv,
    Dropout,
    FeedForward,
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
)
from fxsurgery.passes import ALL
from fxsurgery.program import Program
from fxsurgery.surgery import Rewrite


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
def part(draw: st.DrawFn, sketch: Sketch) -> None:
    """One part more; drawn as one, so that shrinking can leave it out."""
    draw(st.sampled_from(PARTS))(sketch)


@st.composite
def graphs(draw: st.DrawFn, max_parts: int = 12) -> Graph:
    """Graphs of images 8 to 12 pixels a side, or of sequences, with at most 24 channels."""
    image = draw(st.sampled_from([(3, 8, 8), (3, 9, 12), (4, 10, 8), (3, 12)]))
    sketch = Sketch(draw, image)
    sketch.block(0)
    for _ in range(max_parts):
        if sketch.number(0, 6) == 0:
            break
        draw(part(sketch))
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


OPENS = {"insert-gates": "remove-gates", "elasticize": "extract-subnet"}
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
