"""Parts of an operator's declaration other than spellings: plain data for analysis, passes and code generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from torch import fx, nn


@dataclass(frozen=True, slots=True)
class OperandArgument:
    """An argument of a call, given by position or keyword; a module stores it as the attribute `name`."""

    position: int
    """Position, where the first input is 0."""
    name: str
    default: Any = None
    other_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return every keyword that PyTorch accepts for it."""
        return (self.name, *self.other_names)

    def of_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- an argument of any type
        """Return its value in a call, or the default if it is not given."""
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
        """Return the key for `Editor.set_argument`: the position if it was given by position, else the keyword."""
        if 0 <= self.position < len(node.args):
            return self.position
        return next((name for name in self.names if name in node.kwargs), self.name)


Role = Literal["activation", "step", "identity"]
"""Role of a pointwise function: an activation after a layer, a step of a formula, or the identity in eval mode."""


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight tensor of a contraction."""

    argument: OperandArgument
    """Argument of a function call; a module stores it as `weight`."""
    outputs: int | None
    """Dim of the output channels; None without one."""
    inputs: int | None
    """Dim of the input channels, per group if there are groups; None without one."""
    bias: OperandArgument | None = None
    groups: OperandArgument | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """The spatial windows of a convolution or pooling."""

    rank: int
    """Number of spatial dims: 1, 2 or 3."""
    reduces: Literal["weighted sum", "average", "maximum", "power"]
    kernel: OperandArgument | None = None
    """Window size; None if the weight's shape or the output size determines it."""
    stride: OperandArgument | None = None
    padding: OperandArgument | None = None
    dilation: OperandArgument | None = None
    ceil_mode: OperandArgument | None = None
    counts_padding: OperandArgument | None = None
    divisor: OperandArgument | None = None
    returns_indices: OperandArgument | None = None
    output_size: OperandArgument | None = None
    """Output size of an adaptive pooling, which determines its windows."""
    transposed: bool = False

    @property
    def is_adaptive(self) -> bool:
        """Return True for adaptive pooling, whose output size determines the windows."""
        return self.output_size is not None


class SizeRule(StrEnum):
    """How size arguments follow a tensor whose dims change."""

    SHAPE = "shape"
    """One size per dim of the result: view, expand. Arguments: the sizes, as one sequence or unpacked."""
    PIECES = "pieces"
    """Sizes of the pieces along a dim: split, chunk. Arguments: the sizes or their number, the dim."""
    INDEX = "index"
    """An index with bounds: `x[:, a:b]`. Arguments: the index."""
    RANGE = "range"
    """A range of one dim: narrow. Arguments: the dim, the start, the length."""
    ENTRY = "entry"
    """One entry of one dim: select. Arguments: the dim, the index."""
    UNFLATTENED = "unflattened"
    """The sizes that one dim is split into: unflatten. Arguments: the dim, the sizes."""
    PADDING = "padding"
    """Padding of the last dims. Arguments: the amounts."""
    NORMALIZED = "normalized"
    """The sizes of the trailing dims: layer norm. Arguments: the sizes."""
    GROUPS = "groups"
    """The number of channel groups. Arguments: the number."""
    SCALE = "scale"
    """A factor whose default depends on the size of the last dim: attention. Arguments: the factor."""
    SHIFTS = "shifts"
    """Shifts along dims: roll. Arguments: the shifts, the dims."""


@dataclass(frozen=True, slots=True)
class SizeArguments:
    """The size arguments of an operator, and how they follow its tensors."""

    rule: SizeRule
    arguments: tuple[OperandArgument, ...]
    computed: bool = True
    """Whether sizes that the graph computes are rewritten too, not only constants."""
    needs_constants: bool = False
    """Whether nothing is rewritten if one of the sizes is computed by the graph."""


@dataclass(frozen=True, slots=True)
class Infix:
    """A binary operator of Python's syntax."""

    sign: str
    precedence: int
    """Precedence in Python's grammar; a higher one binds more tightly."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why a graph cannot contain a call, and what to write instead."""

    what: str
    remedy: str
