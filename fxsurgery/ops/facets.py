"""What a declaration may say of an operator beside its spellings: plain data, read by analysis, passes and code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from torch import fx, nn


@dataclass(frozen=True, slots=True)
class OperandArgument:
    """An argument of a call: by position or by name; a module has it as the attribute of the first name."""

    position: int
    """Counted from the first input, which is 0."""
    name: str
    default: Any = None
    other_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every keyword under which PyTorch takes it."""
        return (self.name, *self.other_names)

    def of_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- an argument of any type
        """Return its value in a call; the default where it is not given."""
        if 0 <= self.position < len(args):
            return args[self.position]
        return next((kwargs[name] for name in self.names if name in kwargs), self.default)

    def of_node(self, node: fx.Node) -> Any:  # noqa: ANN401 -- an argument of any type
        """Return its value at a `call_function` or `call_method` node."""
        return self.of_call(node.args, node.kwargs)

    def of_module(self, module: nn.Module) -> Any:  # noqa: ANN401 -- an attribute of any type
        """Return its value as an attribute of `module`."""
        return getattr(module, self.name, self.default)

    def key(self, node: fx.Node) -> int | str:
        """Return under which key `Editor.set_argument` replaces it: its position where it was given so."""
        if 0 <= self.position < len(node.args):
            return self.position
        return next((name for name in self.names if name in node.kwargs), self.name)


Role = Literal["activation", "step", "identity"]
"""Of a function of single entries: what networks put after a layer, a step of a formula, the identity in eval mode."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that weighs what an operator sums over."""

    argument: OperandArgument
    """Where a function call has it; a module keeps it as `weight`."""
    outputs: int | None
    """Its dim with one entry for each output channel."""
    inputs: int | None
    """Its dim with one entry for each input channel, of its group if there are groups."""
    bias: OperandArgument | None = None
    groups: OperandArgument | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """The spatial windows of a convolution or pool."""

    rank: int
    """Spatial dims: 1, 2 or 3."""
    reduces: Literal["weighted sum", "average", "maximum", "power"]
    kernel: OperandArgument | None = None
    """The window's size; `None` where the weight's shape has it, or the output's size chooses it."""
    stride: OperandArgument | None = None
    padding: OperandArgument | None = None
    dilation: OperandArgument | None = None
    ceil_mode: OperandArgument | None = None
    counts_padding: OperandArgument | None = None
    divisor: OperandArgument | None = None
    returns_indices: OperandArgument | None = None
    output_size: OperandArgument | None = None
    """Of an adaptive pool, whose windows follow from it."""
    transposed: bool = False

    @property
    def is_adaptive(self) -> bool:
        """Whether the output's size chooses the windows."""
        return self.output_size is not None


class SizeRule(StrEnum):
    """How the arguments that hold sizes follow a tensor whose dims change."""

    SHAPE = "shape"
    """One size a dim of the result: view, expand. Arguments: the sizes, as one sequence or one by one."""
    PIECES = "pieces"
    """Sizes of the pieces along a dim: split, chunk. Arguments: the sizes or their number, the dim."""
    INDEX = "index"
    """An index, bounds included: `x[:, a:b]`. Arguments: the index."""
    RANGE = "range"
    """A part of one dim: narrow. Arguments: the dim, the start, the length."""
    ENTRY = "entry"
    """One entry of one dim: select. Arguments: the dim, the entry."""
    UNFLATTENED = "unflattened"
    """The sizes that one dim becomes. Arguments: the dim, the sizes."""
    PADDING = "padding"
    """Entries added at both ends of the last dims. Arguments: the amounts."""
    NORMALIZED = "normalized"
    """The sizes of the trailing dims. Arguments: the sizes."""
    GROUPS = "groups"
    """The number of groups of channels. Arguments: the number."""
    SCALE = "scale"
    """A factor that depends on the last dim's size where it is not given. Arguments: the factor."""
    SHIFTS = "shifts"
    """By how much entries go round along dims. Arguments: the shifts, the dims."""


@dataclass(frozen=True, slots=True)
class SizeArguments:
    """The arguments of an operator that hold sizes, and how they follow its tensors."""

    rule: SizeRule
    arguments: tuple[OperandArgument, ...]
    computed: bool = True
    """Whether numbers that the graph computes are rewritten there as well as constants."""
    needs_constants: bool = False
    """Whether nothing is rewritten where one of the sizes is computed."""


@dataclass(frozen=True, slots=True)
class Infix:
    """An operator that Python writes between its two operands."""

    sign: str
    precedence: int
    """Of Python's expression grammar: the higher, the tighter it binds."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why no graph can repeat a call, and what to write instead."""

    what: str
    remedy: str
