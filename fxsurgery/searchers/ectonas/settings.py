"""What can be said of an evolutionary search."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from typing_extensions import override

from fxsurgery.errors import SurgeryError
from fxsurgery.searchers.evolution import Axis
from fxsurgery.searchers.operations import OPERATIONS
from fxsurgery.searchers.settings import Settings
from fxsurgery.training import OptimizerFactory

Selection: TypeAlias = Literal["fitness", "random"]


@dataclass(frozen=True, kw_only=True)
class Ectonas(Settings):
    """How the search goes. The defaults are the paper's.

    Raises:
        SurgeryError: a setting has no meaning.
    """

    weights_epochs: float = 10
    """The warm-up of a network that is not trained yet."""
    finetune_epochs: float = 0
    """Of the winner, after the search, at a rate that falls to 0; they are part of the spend."""
    fewest_steps: int = 0
    """No training is shorter, however little data there is."""
    learning_rate: float = 0.1
    """The same throughout, but for the fine-tune. Lower it for a trained model, whose score would fall at once."""
    finetune_learning_rate: float | None = None
    """The fine-tune's at first; `learning_rate` unless said."""
    momentum: float = 0.0
    """Of SGD. Each match begins with a fresh optimizer."""
    weight_decay: float = 0.0
    """Of SGD."""
    greediness: float = 1.0
    """Alpha: 1 ranks by the validation metric, 0 by the number of parameters, between is a balance of their changes."""
    selection: Selection = "fitness"
    """`random` draws the winners of all matches: the control."""
    match_epochs: float = 5
    """Of each entry in each round of a competition."""
    rounds: int = 3
    """Of a competition."""
    parents: int = 2
    """Winners of a generation."""
    rolling_epochs: int = 3
    """Over so many last epochs of its matches the score of a network is averaged."""
    operations: tuple[str, ...] = tuple(OPERATIONS)
    """What may be done to a parent."""
    channels: int = 3
    """Channels that are added or removed at once, at least."""
    units: int = 2
    """Units of dense layers that are added or removed at once, at least."""
    change: float = 0.1
    """Of a width, the share that is added or removed at once, where that is more."""
    places: int = 8
    """Of each operation on each parent, at most so many places are tried."""
    most_params: int = 8_000_000
    """Networks with more parameters are not tried, unless the start has more: then `most_growth` bounds them alone."""
    most_growth: float = 3.0
    """Nor are those that are larger than their parent by more than this share."""
    front: Axis = "params"
    """What the Pareto front sets the metric against."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for names, fits, what in _RULES:
            for name in names:
                if not _holds(fits, getattr(self, name)):
                    raise SurgeryError(f"{name}={getattr(self, name)!r}: it must be {what}")
        if self.optimizer is not None and self.finetune_learning_rate is not None:
            raise SurgeryError(
                "finetune_learning_rate is for SGD, and the optimizer that was given has a rate of its own"
            )
        for name in self.operations or ("none at all",):
            if name not in OPERATIONS:
                raise SurgeryError(f"operations: there is no {name!r}; there are: {', '.join(OPERATIONS)}")

    @property
    def finetune_optimizer(self) -> OptimizerFactory:
        """The one that trains the winner."""
        return replace(self, learning_rate=self.finetune_learning_rate or self.learning_rate).own_optimizer


def _holds(fits: Callable[[Any], bool], value: object) -> bool:
    try:
        return fits(value)
    except TypeError:  # a text, say, where a number belongs
        return False


_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("rounds", "parents", "rolling_epochs", "channels", "units", "places", "most_params"),
        lambda value: isinstance(value, int) and value >= 1,
        "a whole number, at least 1",
    ),
    (("finetune_learning_rate",), lambda value: value is None or 0 < value < math.inf, "greater than 0, and finite"),
    (("match_epochs", "most_growth"), lambda value: 0 < value < math.inf, "greater than 0, and finite"),
    (("greediness", "change"), lambda value: 0 <= value <= 1, "from 0 to 1"),
    (("operations",), lambda value: not isinstance(value, str), "several names, such as ('identity', 'add-cell')"),
    (("selection",), lambda value: value in get_args(Selection), " or ".join(get_args(Selection))),
    (("front",), lambda value: value in get_args(Axis), " or ".join(get_args(Axis))),
)
"""What must hold of which settings."""
