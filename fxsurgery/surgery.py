"""Passes, their results, and their composition."""

import enum
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, final

import torch
from typing_extensions import override

from fxsurgery.edit import Editor
from fxsurgery.errors import DifferError, NotRunningError, PassCrashedError, SpecError, SurgeryError, first_line
from fxsurgery.lineage import Origin, compose
from fxsurgery.match import Refusal
from fxsurgery.option_text import type_name
from fxsurgery.option_types import check_options, checked
from fxsurgery.program import Program
from fxsurgery.proof import RUN_ERRORS, check_promise, itself
from fxsurgery.surroundings import plain_surroundings


class Effect(enum.Enum):
    """Effect of a pass on the outputs."""

    EXACT = "exact"
    """The outputs are equal up to rounding."""
    LOSSY = "lossy"
    """The outputs keep their shapes; the program needs retraining."""


class Trains(enum.Enum):
    """Behavior in training of the result of a pass whose effect is `EXACT`."""

    ALIKE = "alike"
    """The same training steps lead to the same outputs as for the program before."""
    ON = "on"
    """Its outputs and norm statistics in train mode are the same at first, and diverge during training."""
    NO = "no"
    """It is for inference only: in train mode it computes something else."""


@dataclass(frozen=True)
class PassResult:
    """The program after a pass: the input itself when `changes` is 0."""

    program: Program
    changes: int
    effect: Effect
    refusals: tuple[Refusal, ...] = ()
    error: float | None = None
    """Largest relative difference from the promised outputs; `None` if only shapes were promised."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Origins of parameters that were made from an earlier one, by name, for `training.transfer_optimizer_state`."""

    @override
    def __repr__(self) -> str:
        counts = {"change": self.changes, "refusal": len(self.refusals)}
        numbers = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
        return f"<PassResult: {numbers}, {self.effect.value}; {self.program!r}>"


class Pass(ABC):
    """A transformation of a program into another. Calling it never modifies its input."""

    @abstractmethod
    def __call__(self, program: Program) -> PassResult:
        """Run the pass, and check its promise on the example inputs."""

    @abstractmethod
    @override
    def __str__(self) -> str:
        """Return the pass as text, which `fxsurgery.passes.parse` parses for a single pass."""


@dataclass(frozen=True)
class Rewrite(Pass):
    """A pass that edits the graph. A subclass is a frozen dataclass; its fields are its options."""

    name: ClassVar[str]
    trains: ClassVar[Trains] = Trains.ON
    follows_structure: ClassVar[bool] = False
    """Whether the pass resizes groups of the structure analysis. If the result does not run, the model computes with
    its sizes in a way that no analysis sees: that is a refusal, not a bug of the pass."""

    @override
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "candidates" in vars(cls):
            type.__setattr__(cls, "candidates", classmethod(_guarded(vars(cls)["candidates"].__func__)))

    @classmethod
    def candidates(cls, program: Program) -> Iterator[Self]:
        """Yield the instances worth trying on `program`: the moves that a search may make."""
        del program
        yield cls()

    @abstractmethod
    def rewrite(self, edit: Editor) -> Effect:
        """Make the edits, and return their effect on the outputs of the program."""

    @final
    @override
    @plain_surroundings()
    def __call__(self, program: Program) -> PassResult:
        check_options(self)
        _require_program(self.name, program)
        edit = Editor(program)
        try:
            effect = self.rewrite(edit)
            effect = effect if edit.changes else Effect.EXACT
        except SurgeryError:
            raise
        except Exception as error:
            raise PassCrashedError(f"{self} crashed, after {list(program.log)}: {error!r}") from error
        result = edit.finish(str(self))
        reference = itself(program) if effect is Effect.EXACT else edit.reference
        try:
            measured = check_promise(result, reference, edit, by=str(self)) if edit.changes else None
        except DifferError as error:
            measured = self._in_double(program, error)
            edit.refuse("output", f"rounding grows in this model: in float64 the difference is {measured:.1e}, {error}")
        except NotRunningError as error:
            if not self.follows_structure:
                raise
            reason = (
                f"the smaller model would not run, or could not be verified: {first_line(error.__cause__ or error)}"
            )
            return PassResult(program, 0, Effect.EXACT, (*edit.refusals, Refusal("output", reason)))
        return PassResult(result, edit.changes, effect, tuple(edit.refusals), measured, edit.origins)

    @final
    def _in_double(self, program: Program, error: DifferError) -> float:
        """Return the error in float64, where rounding is small and a mistake is not; raise `error` for a mistake."""
        if any(x.dtype == torch.float64 for x in program.graph_module.parameters()):
            raise error
        try:
            precise = self(program.in_double()).error
        except (SurgeryError, *RUN_ERRORS):
            raise error from None  # it shows there as well, or the model has constants of another type
        if precise is None:
            raise error
        return precise

    @final
    @override
    def __str__(self) -> str:
        options = ",".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{self.name}({options})" if options else self.name


def _guarded(candidates: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Wrap `candidates` of a pass so that its bugs are raised as errors that name the pass."""

    @functools.wraps(candidates)
    def guarded(cls: type[Rewrite], program: Program, *args: Any, **named: Any) -> Iterator[Any]:  # noqa: ANN401
        _require_program(f"{cls.name}: candidates", program)
        try:
            yield from candidates(cls, program, *args, **named)
        except SurgeryError:
            raise
        except Exception as error:
            raise PassCrashedError(
                f"{cls.name}: its candidates crashed, after {list(program.log)}: {error!r}"
            ) from error

    return guarded


def _require_program(who: str, given: object) -> None:
    if not isinstance(given, Program):
        raise SpecError(f"{who} takes a fxsurgery.Program, not a {type_name(given)}: capture(model, x) makes one")


@dataclass(frozen=True)
class Chain(Pass):
    """A sequence of passes."""

    passes: tuple[Pass, ...]

    @override
    def __call__(self, program: Program) -> PassResult:
        results = list[PassResult]()
        for pass_ in self.passes:
            results.append(pass_(results[-1].program if results else program))
        errors = [r.error for r in results if r.error is not None]
        exact = all(r.effect is Effect.EXACT for r in results)
        return PassResult(
            results[-1].program if results else program,
            sum(r.changes for r in results),
            Effect.EXACT if exact else Effect.LOSSY,
            tuple(refusal for r in results for refusal in r.refusals),
            max(errors, default=None),
            compose(program, results),
        )

    @override
    def __str__(self) -> str:
        return ";".join(map(str, self.passes))


@checked(SpecError)
def chain(*passes: Pass) -> Chain:
    """Return the pass that runs `passes` one after another; it is exact if each of them is."""
    return Chain(passes)
