"""The declaration of an operator: its spellings, and every fact about it that the package uses.

An operator is a computation; a spelling is one way to call it: a module (`nn.ReLU`), a function (`F.relu`,
`torch.relu`, `operator.add`), a method (`x.relu()`), an attribute (`x.T`). A fact about the operator holds for all of
its spellings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from torch import nn

from fxsurgery.ops.facets import Infix, OperandArgument, Role, SizeArguments, Unsupported, Weight, Window
from fxsurgery.ops.fast.meta_call import FastCall, FastModule
from fxsurgery.ops.macs import Macs
from fxsurgery.ops.module_sizes import SizeAttributes
from fxsurgery.ops.rules.call import Rule

Function = Callable[..., Any]


class Kind(StrEnum):
    """Kind of computation that an operator performs."""

    POINTWISE = "pointwise"
    """Elementwise function of one tensor."""
    ARITHMETIC = "arithmetic"
    """Elementwise function of several tensors, with broadcasting."""
    CONTRACTION = "contraction"
    """Sum of products over a dim: linear layers, convolutions, matrix products."""
    ATTENTION = "attention"
    NORM = "norm"
    POOLING = "pooling"
    RESAMPLING = "resampling"
    """Values at other positions: interpolation, grid sampling."""
    MOVEMENT = "movement"
    """Entries change places and keep their values; some may be dropped or repeated."""
    JOINING = "joining"
    """Concatenation, stacking, padding."""
    REDUCTION = "reduction"
    SCAN = "scan"
    """Each entry depends on others along a dim: softmax, cumulative sums."""
    LOOKUP = "lookup"
    """Entries are selected or written by index or value."""
    RECURRENT = "recurrent"
    RANDOM = "random"
    CREATION = "creation"
    TRANSFORM = "transform"
    """Fourier transforms, decompositions, solvers."""
    QUERY = "query"
    """Sizes, dtype and other metadata of a tensor, as Python values."""
    FUSED = "fused"
    """Several steps that PyTorch runs as one, without known facts."""
    HOST = "host"
    """Passes tensor values to Python or changes a tensor's state; no graph can contain it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Operator:
    """An operator.

    Everything named `name` or one of `aliases` in `torch`, `torch.nn.functional`, `torch.special` and `torch.Tensor` is
    a spelling of it, and so are these names with a trailing underscore, which write to the first input. Spellings with
    other names are listed in `functions`, `methods` and `attributes`.

    Example:
        >>> import torch
        >>> swish = Operator(name="swish", kind=Kind.POINTWISE, functions=(lambda x: x * x.sigmoid(),))
        >>> swish.kind.value
        'pointwise'
    """

    name: str
    kind: Kind
    aliases: tuple[str, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Function, ...] = ()
    methods: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    """Attributes of a tensor, such as `T` for `x.T`."""
    dunder: str = ""
    """Base name of its special methods: `add` for `__add__`, `__iadd__`, `__radd__` and the functions of `operator`."""
    reflected: tuple[Function, ...] = ()
    """Functions that take the two operands in reverse order, such as `torch.rsub`."""
    writes: bool = False
    """Whether every spelling writes to the first input, as `x[i] = y` does."""
    is_named: bool = True
    """Whether the PyTorch functions and methods called `name` are this operator."""
    aten: tuple[str, ...] = ()
    """Further ATen operations that compute it; those of other libraries as `library::name`."""

    rule: Rule | None = None
    """How labels propagate through its ATen operations; elementwise operators need no rule of their own."""
    macs: Macs | None = None
    fast_module: FastModule | None = None
    """Returns the ATen operation of a module call without running it, where possible."""
    fast_call: FastCall | None = None
    """Returns the ATen operation of a function or method call without running it, where possible."""
    computes: bool = True
    """Whether it computes anything; one that does not is not listed as uncounted by the MACs."""
    states_sizes: bool = False
    """Whether its ATen operations have size arguments."""
    keeps_dtype: bool = False
    """Whether the result has the dtype of the first input if that is floating-point."""

    rank: int | None = None
    """Number of spatial dims of an operator with variants for 1, 2 and 3."""
    role: Role | None = None
    """Role of a pointwise function; further facts about it are found by running it on numbers."""
    weight: Weight | None = None
    size_attributes: SizeAttributes | None = None
    """Returns the size attributes of its module, which must follow when its tensors are resized."""
    window: Window | None = None
    sizes: SizeArguments | None = None
    hides_sizes: bool = False
    """Whether it has size arguments in a form that cannot be rewritten."""
    statistics: Literal["channel", "group", "trailing", "instance"] | None = None
    """For a norm, what the statistics belong to; "channel" means that they run over all other dims."""
    draws: Literal["regularizes", "samples"] | None = None
    """Use of random numbers: to regularize the result, or as the result."""
    cancels: bool = False
    """Whether f(x, x) is a constant, as for subtraction and division."""
    keeps_zero: bool | None = None
    """Whether it maps zeros to zeros, in train mode too; None if that is found by running it."""
    creates: bool = False
    """Whether it creates a tensor from numbers only, such as the sizes of the result."""
    extents: Literal["sizes", "count", "first", "rank"] | None = None
    """Which sizes of its input it returns: all or one by index, their product, that of dim 0, or the number of dims."""
    parts: OperandArgument | None = None
    """Argument with the number or sizes of the tensors that it returns; `unbind` returns one per entry."""
    picks: bool = False
    """Whether the result may omit entries of the input."""
    rearranges: bool = False
    """Whether each entry of the result is one of the inputs', at a place that depends on shapes only."""
    regroups: bool = False
    """Whether entries may move to other dims, as in views and permutations."""
    sized_by_values: bool = False
    """Whether the size of the result depends on values."""
    takes_sizes_apart: bool = False
    """Whether it accepts the sizes of the result unpacked as well as in a tuple."""
    infix: Infix | None = None
    prefix: str = ""
    """Python's unary operator for it."""
    unsupported: Unsupported | None = None
    """Why a graph cannot contain it, and the remedy; None if it can."""

    @property
    def is_entrywise(self) -> bool:
        """Return True for elementwise functions of one or several tensors."""
        return self.kind in {Kind.POINTWISE, Kind.ARITHMETIC}

    @property
    def keeps_channels(self) -> bool:
        """Return True if the channels of the result are those of the first input, at the same dim."""
        alone = self.kind is Kind.POINTWISE or self.role is not None
        return alone or self.kind is Kind.POOLING or self.statistics is not None

    @property
    def multiplies(self) -> bool:
        """Return True for sums of products, whose MACs are unknown without a formula; those of others count as 0."""
        return self.kind in {Kind.CONTRACTION, Kind.ATTENTION, Kind.RECURRENT, Kind.TRANSFORM}

    @property
    def is_pool(self) -> bool:
        """Return True for average and max pooling, including adaptive ones."""
        return self.window is not None and self.window.reduces in {"average", "maximum"}

    @property
    def is_convolution(self) -> bool:
        """Return True for convolutions, transposed or not."""
        return self.window is not None and self.weight is not None

    @property
    def is_mixing_layer(self) -> bool:
        """Return True for layers that mix channels with a weight: linear layers and convolutions."""
        return self.kind is Kind.CONTRACTION and self.weight is not None and bool(self.modules)

    def is_exactly(self, module: nn.Module) -> bool:
        """Return True if the type of `module` is one of its own, not a subclass."""
        return type(module) in self.modules


Form = Literal["module", "function", "method", "attribute", "aten"]


@dataclass(frozen=True)
class Spelling:
    """One way to call an operator."""

    operator: Operator
    form: Form
    key: Any
    """The module type, the function, or the name of the method, attribute or ATen operation."""
    in_place: bool = False
    """Whether it writes to its first input."""
    reflected: bool = False
    """Whether its operands are in reverse order."""
