"""The settings of an evolutionary search."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from typing_extensions import override

from fxsurgery.budget import Metric
from fxsurgery.calls import checked_construction
from fxsurgery.errors import SurgeryError
from fxsurgery.option_types import MOST_UNITS, Fraction, Range
from fxsurgery.searchers.common.moves import OPERATIONS
from fxsurgery.searchers.common.settings import Epochs, OptionalRate, Settings, Steps
from fxsurgery.training import Schedule, ScheduleName

Selection: TypeAlias = Literal["fitness", "random"]
_WHOLE = ": it must be a whole number, at least 1 and less than"
Several: TypeAlias = Annotated[int, Range(least=1, below=10**4, said=f"{_WHOLE} 10,000")]
Units: TypeAlias = Annotated[
    int, Range(least=1, most=MOST_UNITS, said=f": it must be a whole number, at least 1 and at most {MOST_UNITS:,}")
]
Many: TypeAlias = Annotated[int, Range(least=1, below=10**18, said=f"{_WHOLE} 10**18")]


@dataclass(frozen=True, kw_only=True)
class EvolutionSettings(Settings):
    """The settings of an evolutionary search beyond those of every method.

    The defaults follow the paper, except that of `places`.
    """

    finetune_learning_rate: OptionalRate = None
    """Initial learning rate of the fine-tuning; `learning_rate` by default."""
    greediness: Fraction = 1.0
    """Alpha: 1 ranks by the validation metric, 0 by the number of parameters, values between balance their changes."""
    selection: Selection = "fitness"
    """How the winners of matches are selected: by `fitness`, or `random` as a control."""
    match_epochs: Annotated[float, Range(above=0, below=10**18)] = 5
    """Number of epochs that each network trains in each round of a competition."""
    rounds: Several = 3
    """Number of rounds of a competition."""
    parents: Several = 2
    """Number of networks that win a generation and become the parents of the next one."""
    rolling_epochs: Many = 3
    """Number of last epochs over which the score of a network is averaged."""
    operations: tuple[str, ...] = tuple(OPERATIONS)
    """Names of the operations that may be applied to a parent."""
    channels: Units = 3
    """Minimum number of channels that one move adds or removes."""
    units: Units = 2
    """Minimum number of units of dense layers that one move adds or removes."""
    change: Fraction = 0.1
    """Fraction of a width that one move adds or removes, if that is more than `channels` or `units`."""
    places: Several = 8
    """Maximum number of places at which each operation is tried on each parent."""
    most_params: Many = 8_000_000
    """Maximum number of parameters of a network; if the start has more, only `most_growth` applies."""
    most_growth: Annotated[float, Range(above=0, below=10**18)] = 3.0
    """Maximum growth of a network over its parent, as a fraction of the parent's parameters."""
    front: Metric = "params"
    """The cost that the Pareto front trades off against the validation metric."""


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Ectonas(EvolutionSettings):
    """The settings of `method="ectonas"`.

    The defaults follow the paper, except those of `places`, `learning_rate` and `gradient_clip`. The paper tries all
    places, and trains at a rate of 0.1.

    Raises:
        SurgeryError: a setting is out of its range, or two settings exclude each other.
    """

    weights_epochs: Epochs = 10
    """Number of epochs of warm-up for a network that is not trained yet."""
    finetune_epochs: Epochs = 0
    """Number of epochs of fine-tuning of the winner, at a rate that falls to 0; they are part of the spend."""
    fewest_steps: Steps = 0
    """Minimum number of steps of a training, however little data there is."""
    learning_rate: OptionalRate = None
    """Learning rate of the warm-up and of all matches, found by a range test on the start by default.

    It is at most 0.1, and at most 0.01 for a trained model, whose score would drop at once. A training that diverges is
    repeated at a tenth of the rate, within the spend, and its descendants keep that rate. The paper uses 0.1. The test
    itself is not part of the spend. A rate that you give is kept."""
    momentum: Annotated[float, Range(least=0, below=1)] = 0.0
    """Momentum of SGD. Each match starts with a new optimizer."""
    weight_decay: Annotated[float, Range(least=0)] = 0.0
    """Weight decay of SGD."""
    schedule: ScheduleName | Schedule = "cosine"
    """Learning-rate schedule of the fine-tuning: `cosine`, `linear`, `step`, `one-cycle`, `constant`, or a function.

    The warm-up and the matches train at a constant rate. A function maps the fraction of the fine-tuning that is over,
    0 to 1, to a factor of the learning rate."""
    warmup: Annotated[float, Range(least=0, below=1)] = 0.05
    """Fraction of the fine-tuning over which the rate rises from 0; `one-cycle` and functions have their own rise."""
    early_stopping: Annotated[int | None, Range(least=1, below=2**31)] = None
    """Validations without improvement after which the warm-up and the fine-tuning end, with their best weights; off by
    default. Only the steps that ran are charged to the spend."""

    highest_rate: ClassVar[float] = 0.1
    highest_trained_rate: ClassVar[float] = 0.01

    @override
    def __post_init__(self) -> None:
        given: object = self.operations
        if isinstance(given, str):
            raise SurgeryError(f"operations={given!r}: it must be several names, such as ('identity', 'add-cell')")
        if isinstance(given, list):
            object.__setattr__(self, "operations", tuple(given))
        super().__post_init__()
        if self.optimizer is not None and self.finetune_learning_rate is not None:
            raise SurgeryError(
                "finetune_learning_rate is for SGD, and the given optimizer has a rate of its own; leave it out"
            )
        for name in self.operations or ("none at all",):
            if name not in OPERATIONS:
                raise SurgeryError(f"operations: there is no {name!r}; there are: {', '.join(OPERATIONS)}")
