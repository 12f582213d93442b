"""Learning-rate schedules: the factor of the peak rate as a function of the fraction of the training that is over.

Five have names. "cosine", "linear", "step" and "constant" begin with a linear warm-up from 0. After it, "cosine" falls
to 0 along half a cosine wave and "linear" along a straight line, "step" divides the rate by 10 at 1/2 and at 3/4 of the
training, and "constant" stays. "one-cycle" (Smith & Topin 2018) rises along half a cosine wave from 1/25 over the first
30 %, and falls to 0 along another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from fxsurgery.errors import TrainingError, reason_of
from fxsurgery.option_types import Fraction, Range, checked

Schedule: TypeAlias = Callable[[float], float]
"""Factor of the learning rate at a fraction of the training, from 0 to 1."""
ScheduleName: TypeAlias = Literal["cosine", "linear", "step", "one-cycle", "constant"]

MILESTONES = (0.5, 0.75)
"""Fractions of the training at which "step" divides the rate by 10."""
ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 1 / 25
_Factor: TypeAlias = Annotated[float, Range(least=0)]
_PROBED = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99)
"""Fractions of the training at which a user's schedule is tried before anything trains."""


@checked(TrainingError)
def constant(warmup: Fraction = 0.0) -> Schedule:
    """Return the constant schedule, after a linear warm-up.

    Args:
        warmup: fraction of the training over which the rate rises from 0.

    Example:
        >>> constant()(0.7)
        1.0
    """
    return lambda progress: progress / warmup if progress < warmup else 1.0


@checked(TrainingError)
def cosine(warmup: Fraction = 0.05) -> Schedule:
    """Return a schedule that falls to 0 along half a cosine wave, after a linear warm-up.

    Args:
        warmup: fraction of the training over which the rate rises from 0.

    Example:
        >>> [round(cosine(0.2)(progress), 3) for progress in (0.1, 0.2, 0.6, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """

    def factor(progress: float) -> float:
        return progress / warmup if progress < warmup else _falling(_after(progress, warmup))

    return factor


@checked(TrainingError)
def linear(warmup: Fraction = 0.05) -> Schedule:
    """Return a schedule that falls to 0 along a straight line, after a linear warm-up.

    Args:
        warmup: fraction of the training over which the rate rises from 0.

    Example:
        >>> [round(linear(0.2)(progress), 3) for progress in (0.1, 0.2, 0.6, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    return lambda progress: progress / warmup if progress < warmup else 1.0 - _after(progress, warmup)


@checked(TrainingError)
def steps_at(milestones: Sequence[Fraction], factor: _Factor = 0.1, warmup: Fraction = 0.0) -> Schedule:
    """Return a schedule that multiplies the rate by `factor` at each milestone, after a linear warm-up.

    Args:
        milestones: fractions of the training.
        factor: multiplies the rate once more at each of them.
        warmup: fraction of the training over which the rate rises from 0.

    Example:
        >>> [round(steps_at((0.5, 0.75))(progress), 3) for progress in (0.4, 0.5, 0.8)]
        [1.0, 0.1, 0.01]
    """

    def scale(progress: float) -> float:
        rise: float = progress / warmup if progress < warmup else 1.0
        return rise * factor ** sum(progress >= milestone for milestone in milestones)

    return scale


@checked(TrainingError)
def one_cycle(rise: Fraction = ONE_CYCLE_RISE, start: Fraction = ONE_CYCLE_START) -> Schedule:
    """Return the one-cycle schedule: up along half a cosine wave, then down to 0 along another.

    Args:
        rise: fraction of the training over which the rate rises.
        start: factor at the beginning.

    Example:
        >>> [round(one_cycle()(progress), 3) for progress in (0.0, 0.3, 0.65, 1.0)]
        [0.04, 1.0, 0.5, 0.0]
    """

    def factor(progress: float) -> float:
        if progress < rise:
            return 1.0 - (1.0 - start) * _falling(progress / rise)
        return _falling(_after(progress, rise))

    return factor


_NAMED: Mapping[ScheduleName, Callable[[float], Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "step": lambda warmup: steps_at(MILESTONES, warmup=warmup),
    "one-cycle": lambda _: one_cycle(),
    "constant": constant,
}


@checked(TrainingError)
def schedule_of(schedule: ScheduleName | Schedule, warmup: Fraction = 0.05) -> Schedule:
    """Return the schedule of a name, or the user's own function as it is.

    Args:
        schedule: a name, or a function of the fraction of the training, which sees to its own warm-up.
        warmup: fraction of the training over which a named schedule rises from 0; "one-cycle" has its own rise.

    Example:
        >>> schedule_of("constant", warmup=0.1)(0.05)
        0.5
    """
    return _NAMED[schedule](warmup) if isinstance(schedule, str) else schedule


def require_factors(schedule: Schedule) -> None:
    """Try a user's schedule before anything trains.

    Raises:
        TrainingError: it raises, or gives something other than a finite number of at least 0.
    """
    for progress in _PROBED:
        try:
            factor: Any = schedule(progress)
        except Exception as error:
            raise TrainingError(
                f"schedule={_name(schedule)} raises {type(error).__name__} at {progress:g} of the training: "
                f"{reason_of(error)}; pass a function from a fraction, 0 to 1, to a factor of the learning rate"
            ) from error
        if not is_factor(factor):
            raise TrainingError(
                f"schedule={_name(schedule)} gives {factor!r} at {progress:g} of the training; it must give a finite "
                "number of at least 0, the factor of the learning rate"
            )


def is_factor(value: object) -> bool:
    """Return True for a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _after(progress: float, start: float) -> float:
    """Return the fraction that is over of the rest of the training, from `start` on."""
    return (progress - start) / max(1 - start, 1e-12)


def _falling(progress: float) -> float:
    """Return half a cosine wave from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _name(schedule: Schedule) -> str:
    return getattr(schedule, "__name__", type(schedule).__name__)
