"""Numeric proof that a pass kept its promise: outputs for the example inputs, and for another number of samples.

    result(x_1 ... x_B) = reference(x_1 ... x_B)        on the example inputs
    result(x_1)         = reference(x_1 ... x_B)_1      where a sample's outputs are its own: `kept_outputs.is_apart`
    result(x_1 ... x_B, x_1) = the same, reference(...)_1 at the end       where an edit may hold B in a constant

The second line finds what holds the size of the batch (a shape, an expanded tensor, values worked out on the
examples), as a batch of one sample more does; the third one what holds it as a bound, such as `x[:B]`. Where a program
mixes its samples, and wherever one of these fails, result and reference are both run on one sample more: that decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fxsurgery.comparison import largest_error
from fxsurgery.edit import Editor, Reference
from fxsurgery.errors import DifferError, NotRunningError, VerifyError, first_line
from fxsurgery.inputs import Inputs
from fxsurgery.kept_outputs import (
    device_of,
    forget_outputs,
    is_apart,
    is_first_question,
    kept_outputs,
    note_apart,
    runs_seeded,
    seeded_outputs,
)
from fxsurgery.program import Program
from fxsurgery.seeding import reseed

RUN_ERRORS = (
    RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError, ArithmeticError,
)  # fmt: skip
"""Errors that a program raises for inputs that it does not accept."""


@dataclass(frozen=True)
class Itself:
    """Reference outputs: those of `program`."""

    program: Program

    def __call__(self, _: Program, inputs: Inputs) -> list[Tensor]:
        """Return the outputs of the program."""
        return self.program.outputs(inputs)


def itself(program: Program) -> Reference:
    """Return the reference of a result that must compute the same as `program`."""
    return Itself(program)


def check_promise(result: Program, reference: Reference | None, edit: Editor, *, by: str) -> float | None:
    """Compare `result` with `reference` on the example inputs; without a reference, only shapes with `before`.

    Call it in plain surroundings, as `Rewrite` does.

    Args:
        result: what the edit left.
        reference: gives the outputs that are promised.
        edit: of the program before.
        by: the pass, for messages.

    Returns:
        The relative error: largest absolute difference over largest absolute reference value.

    Raises:
        NotRunningError: `result` or the reference does not run.
        VerifyError: the outputs differ by more than rounding, or changed shape. It names `by`.
    """
    start = edit.program
    claim = _Claim(result, reference or Itself(start), start, start.examples, by, shapes_only=reference is None)
    with runs_seeded(claim.examples):
        return _checked(claim, may_fix_batch=edit.may_fix_batch)


def _checked(claim: "_Claim", *, may_fix_batch: bool) -> float | None:
    try:
        measured = claim.check_examples()
    except NotRunningError:
        raise
    except VerifyError:
        # The cached outputs of the program before may be stale in a way that is not detected, as a changed attribute.
        if not claim.forget_reference():
            raise
        measured = claim.check_examples()
    if not claim.shapes_only:
        claim.check_other_batch(may_fix_batch=may_fix_batch)
    return measured


@dataclass(frozen=True)
class _Claim:
    """The claim of the pass `by` that `result` computes what `reference` returns."""

    result: Program
    reference: Reference
    start: Program
    examples: Inputs
    by: str
    shapes_only: bool
    _wanted: dict[int | None, Sequence[Tensor]] = field(default_factory=dict)
    """Reference outputs by number of samples."""

    def check_examples(self) -> float | None:
        """Compare on the example inputs; return the relative error, or `None` if only shapes are promised."""
        try:
            got = kept_outputs(self.result)
        except RUN_ERRORS as error:
            raise NotRunningError(f"{self.by} left a program that does not run: {first_line(error)}") from error
        wanted = self._wanted_outputs()
        if [o.shape for o in got] != [o.shape for o in wanted]:
            raise VerifyError(f"{self.by} changed output shapes {_shapes(wanted)} to {_shapes(got)}")
        return None if self.shapes_only else self._check_equal(got, wanted, " promised equal outputs; they")

    def forget_reference(self) -> bool:
        """Drop the cached outputs of the reference; return whether there were any."""
        self._wanted.clear()
        return isinstance(self.reference, Itself) and forget_outputs(self.reference.program)

    def check_other_batch(self, *, may_fix_batch: bool) -> None:
        """Compare on another number of samples; a program with a constant batch size is right for the examples only."""
        batch = self.examples.batch or 0
        if self.examples.is_divisible and self._holds_by_sample(1 if batch > 1 and not may_fix_batch else batch + 1):
            note_apart(self.result, value=True)
            return
        note_apart(self.result, value=is_apart(self.start))
        try:
            kept_outputs(self.start, batch + 1)
        except RUN_ERRORS:
            return  # the program itself takes the example batch only
        try:
            got = seeded_outputs(self.result, self.examples.grown())
        except RUN_ERRORS as error:
            told = f"{self.by} left a program that runs at the example batch size alone: {first_line(error)}"
            raise NotRunningError(told) from error
        self._check_equal(got, self._wanted_outputs(batch + 1), ": at another batch size the outputs")

    def _holds_by_sample(self, samples: int) -> bool:
        """Return True if the result gives for fewer samples what the reference gives for them among the examples."""
        if is_apart(self.start) is False:
            return False
        try:
            got = seeded_outputs(self.result, self.examples.resized(samples))
            expected = self._picked(got, samples, self._wanted_outputs())
            if is_apart(self.start) is None and not self._is_apart(expected, samples):
                return False
        except (NotRunningError, *RUN_ERRORS):
            return False
        return _are_equal(got, expected)

    def _is_apart(self, expected: Sequence[Tensor], samples: int) -> bool:
        """Return True if the outputs of program or reference for a sample do not depend on the other samples.

        For the program this is tested if it is the reference, and at the second call.
        """
        is_own = isinstance(self.reference, Itself) and self.reference.program is self.start
        if not is_own and is_first_question(self.start):
            return _are_equal(self._wanted_outputs(samples), expected)
        few = seeded_outputs(self.start, self.examples.resized(samples))
        found = _are_equal(few, self._picked(few, samples, kept_outputs(self.start)))
        note_apart(self.start, value=found)
        return found

    def _picked(self, like: Sequence[Tensor], samples: int, among: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs for some samples out of those for the examples, `among`, with the shapes of `like`.

        Raises:
            ValueError, RuntimeError: an output has no dim, or several, that grow with the number of samples.
        """
        rows, found = self.examples.resized_rows(samples), list[Tensor]()
        for few, all_ in zip(like, among, strict=True):
            (dim,) = (d for d, (m, n) in enumerate(zip(few.shape, all_.shape, strict=True)) if m != n)
            by_sample = all_.reshape(*all_.shape[:dim], self.examples.batch or 1, -1, *all_.shape[dim + 1 :])
            found.append(by_sample.index_select(dim, rows.to(all_.device)).flatten(dim, dim + 1))
        return found

    def _wanted_outputs(self, samples: int | None = None) -> Sequence[Tensor]:
        """Return the reference outputs for the example inputs, or for the given number of samples of them."""
        if samples not in self._wanted:
            try:
                self._wanted[samples] = self._run_reference(samples)
            except RUN_ERRORS as error:
                told = f"{self.by} cannot be verified, its reference does not run: {first_line(error)}"
                raise NotRunningError(told) from error
        return self._wanted[samples]

    def _run_reference(self, samples: int | None) -> Sequence[Tensor]:
        if isinstance(self.reference, Itself):
            return kept_outputs(self.reference.program, samples)
        inputs = self.examples if samples is None else self.examples.resized(samples)
        reseed(0, device_of(inputs))
        return self.reference(self.result, inputs)

    def _check_equal(self, got: Sequence[Tensor], wanted: Sequence[Tensor], told: str) -> float:
        measured, limit = largest_error(got, wanted)
        if measured > limit:
            raise DifferError(f"{self.by}{told} differ by {measured:.1e} relative (limit {limit:.0e})")
        return measured


def _are_equal(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Return True if outputs differ only by rounding."""
    measured, limit = largest_error(got, wanted)
    return measured <= limit


def _shapes(outputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(o.shape) for o in outputs]
