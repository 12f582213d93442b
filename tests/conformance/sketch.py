"""A graph under way, while it is drawn."""

from collections.abc import Callable

from hypothesis import strategies as st

from conformance import layers
from conformance.graphs import shapes_given
from conformance.steps import Act, Again, Chunk, Conv, Norm, Shape, Step, Tied

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
            kernel = self.pick(3, 2, 1)
            # A 1x1 kernel with padding would read nothing but padding where a map is one pixel large.
            padding = 0 if kernel == 1 else self.pick(1, 0) if min(spatial) > 2 else 1
            step = Conv(at, out, kernel, 2, padding, bias=bias)
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
