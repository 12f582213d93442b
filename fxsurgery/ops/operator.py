"""One declaration for each operator: its spellings, and every fact about it that the package uses.

An operator is what is computed; a spelling is how a program asks for it: a module (`nn.ReLU`), a function (`F.relu`,
`torch.relu`, `operator.add`), a method (`x.relu()`), an attribute (`x.T`). What is true of one spelling is true of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from torch import nn

from fxsurgery.ops.facets import Infix, OperandArgument, Refused, Role, SizeArguments, Weight, Window
from fxsurgery.ops.fast.plain import FastCall, FastModule
from fxsurgery.ops.macs import Macs
from fxsurgery.ops.module_sizes import SizeAttributes
from fxsurgery.ops.rules.call import Rule

Function = Callable[..., Any]


class Kind(StrEnum):
    """What an operator does to the entries of its inputs."""

    POINTWISE = "pointwise"
    """A function of single entries of one tensor."""
    ARITHMETIC = "arithmetic"
    """Entries of several tensors meet one by one, under broadcasting."""
    CONTRACTION = "contraction"
    """Sums products over a dim: convolutions, matrix products."""
    ATTENTION = "attention"
    NORM = "norm"
    POOLING = "pooling"
    RESAMPLING = "resampling"
    """Values at other positions: interpolation, samples of a grid."""
    MOVEMENT = "movement"
    """Entries keep their values and change places; some may be left out or come several times."""
    JOINING = "joining"
    """Tensors beside each other or around: concatenation, stacking, padding."""
    REDUCTION = "reduction"
    SCAN = "scan"
    """Each entry depends on the others of its dim: softmax, cumulative sums."""
    LOOKUP = "lookup"
    """Entries are picked, or written, by number or by value."""
    RECURRENT = "recurrent"
    RANDOM = "random"
    CREATION = "creation"
    TRANSFORM = "transform"
    """Fourier transforms, decompositions, solvers."""
    QUERY = "query"
    """Sizes and types of a tensor, as Python values."""
    FUSED = "fused"
    """Several steps that PyTorch runs as one, of which nothing is known."""
    HOST = "host"
    """Hands values of a tensor to Python, or acts on its state: no graph can hold it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Operator:
    """An operator.

    Everything under `name` and `aliases` in `torch`, `torch.nn.functional`, `torch.special` and `torch.Tensor` is a
    spelling of it; so are the names with an underscore behind, which overwrite the first input. What is called
    otherwise stands in `functions`, `methods` and `attributes`.

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
    """What `getattr` reads of a tensor, as `x.T`."""
    dunder: str = ""
    """`add` for `__add__`, `__iadd__`, `__radd__` and the functions of `operator` behind them."""
    reflected: tuple[Function, ...] = ()
    """Functions that take their two operands the other way round, such as `torch.rsub`."""
    writes: bool = False
    """Whether every spelling overwrites the first input, as `x[i] = y` does."""
    is_named: bool = True
    """Whether what PyTorch has under `name` is this operator."""
    aten: tuple[str, ...] = ()
    """Further ATen operations that compute it, which the dispatcher sees; of other libraries as `library::name`."""

    rule: Rule | None = None
    """How labels pass through its ATen operations; of what works entry by entry, this follows from its kind."""
    macs: Macs | None = None
    fast_module: FastModule | None = None
    """The ATen operation of a module, where it is plain to see."""
    fast_call: FastCall | None = None
    """The ATen operation of a function or method, where it is plain to see."""
    computes: bool = True
    """Whether it computes anything: what does not is not named among what the MACs leave out."""
    states_sizes: bool = False
    """Whether its ATen operations are told sizes."""
    keeps_dtype: bool = False
    """Whether its result has the type of its first input, where that is floating point."""

    rank: int | None = None
    """Spatial dims of an operator that comes for 1, 2 and 3 of them."""
    role: Role | None = None
    """Of a function of single entries: facts about it are worked out by running it on numbers."""
    weight: Weight | None = None
    size_attributes: SizeAttributes | None = None
    """The attributes of its module that hold the sizes of its tensors, which follow when these are resized."""
    window: Window | None = None
    sizes: SizeArguments | None = None
    hides_sizes: bool = False
    """Whether its arguments hold sizes in a form that no rewrite reaches."""
    statistics: Literal["channel", "group", "trailing", "instance"] | None = None
    """Of a norm: over what its statistics run. Channel: over all but the channels."""
    draws: Literal["regularizes", "samples"] | None = None
    """Random numbers: to regularize what it computes, or as its result."""
    cancels: bool = False
    """Whether f(x, x) is a constant: subtraction, division."""
    keeps_zero: bool | None = None
    """Whether it gives zeros for zeros, in train mode as well; `None` where running it on numbers tells."""
    creates: bool = False
    """Whether it makes a tensor out of numbers alone, such as the sizes of what it makes."""
    extents: Literal["sizes", "count", "first", "rank"] | None = None
    """Which sizes of its input it gives: all or one by number, their product, that of dim 0, or how many there are."""
    parts: OperandArgument | None = None
    """Its result is several tensors, as many as this says; `unbind` gives one an entry."""
    picks: bool = False
    """Whether its result may leave entries of its input out."""
    rearranges: bool = False
    """Whether each entry of its result is one of its inputs', of whatever type, at a place that shapes alone tell."""
    regroups: bool = False
    """Whether entries may come to lie along other dims: views, permutations."""
    sized_by_values: bool = False
    """Whether the size of its result depends on values."""
    takes_sizes_apart: bool = False
    """Whether it takes the sizes of its result one by one as well as in a tuple."""
    infix: Infix | None = None
    prefix: str = ""
    """The sign that Python writes before its only operand."""
    refused: Refused | None = None
    """Of what no graph can hold."""

    @property
    def is_entrywise(self) -> bool:
        """Whether entries meet one by one: of one tensor, or of several under broadcasting."""
        return self.kind in {Kind.POINTWISE, Kind.ARITHMETIC}

    @property
    def keeps_channels(self) -> bool:
        """Whether the channels of its result are those of its first input, at the same dim."""
        alone = self.kind is Kind.POINTWISE or self.role is not None
        return alone or self.kind is Kind.POOLING or self.statistics is not None

    @property
    def multiplies(self) -> bool:
        """Whether it sums products: without a formula its MACs are unknown, where those of others count as none."""
        return self.kind in {Kind.CONTRACTION, Kind.ATTENTION, Kind.RECURRENT, Kind.TRANSFORM}

    @property
    def is_pool(self) -> bool:
        """Whether it takes averages or maxima over windows, adaptive ones as well."""
        return self.window is not None and self.window.reduces in {"average", "maximum"}

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, transposed or not."""
        return self.window is not None and self.weight is not None

    @property
    def is_mixing_layer(self) -> bool:
        """Whether it mixes channels with a weight, as a layer does: linear, or a convolution."""
        return self.kind is Kind.CONTRACTION and self.weight is not None and bool(self.modules)

    def is_exactly(self, module: nn.Module) -> bool:
        """Whether the type of `module` is one of its own, and no subclass."""
        return type(module) in self.modules


Form = Literal["module", "function", "method", "attribute", "aten"]


@dataclass(frozen=True)
class Spelling:
    """One way to write an operator."""

    operator: Operator
    form: Form
    key: Any
    """The module's type, the function, or the name of the method, attribute or ATen operation."""
    in_place: bool = False
    """Whether it overwrites its first input."""
    reflected: bool = False
    """Whether its operands come the other way round."""
