"""What every pass owes on every program: `check(program, passes)`, for passes of ours and of anyone else.

    from conformance.promises import check
    from conformance.strategies import graphs

    @given(graphs())
    def test_my_pass_keeps_its_promises(graph):
        program = graph.program()
        for move in MyPass.candidates(program):
            check(program, [move])

`check` runs the passes one after the other. After each, every function of `PROMISES` looks at the program
before, the pass and its result; at the end, every function of `ENDURES` looks at the chain as a whole. Each
raises an AssertionError that says what was broken, and carries the log that leads there. A pass need not be
in the registry; for the check it is.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conformance.measures import (
    NoDeadUnits,
    difference,
    fresh,
    has_statistics,
    larger,
    limit,
    norms,
    outputs_if_any,
    photograph,
    tensors,
    trained,
    twins,
    worst,
)
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.comparison import TOLERANCE
from fxsurgery.errors import SpecError, StructureError, SurgeryError
from fxsurgery.passes import ALL, PruneChannels, parse, replay
from fxsurgery.program import Program
from fxsurgery.proof import RUN_ERRORS
from fxsurgery.surgery import Effect, PassResult, Rewrite, Trains
from nonempty import nonempty, possibly_empty

OURS = ("fxsurgery.nn.gates", "fxsurgery.nn.elastic")
"""Modules of the library that may stand in a graph while a search runs; a pass takes each out again."""
FAINT = 1e-6
"""A gradient this small beside the largest of the model may be nothing but rounding."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One pass on one program."""

    start: Program
    move: Rewrite
    result: PassResult

    @property
    def after(self) -> Program:
        return self.result.program


def check(program: Program, passes: Iterable[Rewrite | str]) -> Program:
    """Run the passes in turn, each on what the one before left, and hold each to what every pass promises.

    Raises:
        AssertionError: a promise is broken.
        SurgeryError: a pass does not run.
    """
    passes = [parse(p) if isinstance(p, str) else p for p in passes]
    with registered(*map(type, passes)):
        after = program
        for move in possibly_empty(passes):
            after = check_pass(after, move).program
        check_endures(program, after)
    return after


def check_pass(program: Program, move: Rewrite) -> PassResult:
    """Run one pass and check every promise about it."""
    before = photograph(program)
    try:
        result = move(program)
        assert photograph(program) == before, "the input was changed: " + difference(before, photograph(program))
        for promise in PROMISES:
            promise(Trial(program, move, result))
    except (AssertionError, SurgeryError) as error:
        error.add_note(f"broken by {move}, after {list(program.log)}")
        raise
    return result


def check_endures(start: Program, after: Program) -> None:
    """Check what holds of a chain of passes as a whole."""
    try:
        for promise in ENDURES:
            promise(start, after)
    except (AssertionError, SurgeryError) as error:
        error.add_note(f"after {list(after.log)}")
        raise


@contextmanager
def registered(*types: type[Rewrite]) -> Iterator[None]:
    """Let `parse` and `replay` know passes of yours for a while."""
    new = {t.name: t for t in types if t.name not in ALL}
    ALL.update(new)
    try:
        yield
    finally:
        for name in new:
            del ALL[name]


def changes_are_told_truly(trial: Trial) -> None:
    """`changes` is 0 for the very same program; else the graph, a module or a tensor is another."""
    start, after, result = trial.start, trial.after, trial.result
    assert (after is start) == (result.changes == 0), f"changes={result.changes}, same program: {after is start}"
    if result.changes:
        differing = difference(photograph(start), photograph(after))
        assert differing != "log", f"{result.changes} changes, and nothing differs"
        assert after.log == (*start.log, str(trial.move)), f"the log is {after.log}"


def doing_nothing_is_explained(trial: Trial) -> None:
    """A pass that changes nothing says why."""
    assert trial.result.changes or trial.result.refusals, "nothing changed, and no refusal says why"
    assert all(r.node and r.reason for r in possibly_empty(trial.result.refusals)), (
        "a refusal without a place or reason"
    )


def spec_reads_back(trial: Trial) -> None:
    """The text of the pass is the pass."""
    assert parse(str(trial.move)) == trial.move, f"{trial.move} reads back as {parse(str(trial.move))}"


def shapes_hold_at_other_batch_sizes(trial: Trial) -> None:
    """The outputs keep their structure, shapes and types, whatever the batch size."""
    size = trial.start.examples.batch or 0
    for samples in (1, size + 3) if has_statistics(trial.start) else (size + 3,):
        inputs = trial.start.examples.resized(samples)
        if (wanted := outputs_if_any(trial.start, inputs)) is None:
            continue
        try:
            got = trial.after.outputs(inputs)
        except RUN_ERRORS as error:
            raise AssertionError(f"at batch {samples} the result does not run: {error}") from error
        shapes, meant = ([(tuple(o.shape), o.dtype) for o in outputs] for outputs in (got, wanted))
        assert shapes == meant, f"at batch {samples} the outputs are {shapes}, not {meant}"
        finite = all(g.isfinite().all() or not w.isfinite().all() for g, w in nonempty(zip(got, wanted, strict=True)))
        assert finite, f"at batch {samples} the outputs are not finite"


def exact_is_exact(trial: Trial) -> None:
    """An EXACT pass gives equal outputs on inputs that it has not seen."""
    if trial.result.effect is Effect.EXACT:
        _equal(trial, lambda start, after: (after.outputs(fresh(start)), start.outputs(fresh(start))), "on new inputs")


def exact_is_exact_at_another_size(trial: Trial) -> None:
    """An EXACT pass gives equal outputs on larger images as well, where both programs take them."""
    if trial.result.effect is not Effect.EXACT:
        return

    def pair(start: Program, after: Program) -> tuple[list[Tensor], list[Tensor]]:
        return after.outputs(larger(start)), start.outputs(larger(start))

    if all(outputs_if_any(program, larger(trial.start)) is not None for program in (trial.start, trial.after)):
        _equal(trial, pair, "at another size")


def structure_is_analyzed(trial: Trial) -> None:
    """The analysis of what changes together runs on the result; a unit of each group can be asked for, one can go."""
    facts = structure(trial.after)
    names = [group.name for group in facts.groups]
    assert len(set(names)) == len(names), f"two channel groups of one name: {names}"
    for group in possibly_empty(facts.groups):
        keep = facts.mask(group.units[:1])
        assert np.flatnonzero(~keep).tolist() == [group.units[0]], f"the first unit of {group.name} cannot be named"
        assert {*facts.empty_dims(keep)} <= {int(group.units[0])}, (
            f"the first unit of {group.name} takes others with it"
        )
    for move in possibly_empty(itertools.islice(PruneChannels.candidates(trial.after, lambda _: 1), 1)):
        result = move(trial.after)
        assert result.changes or result.refusals, f"{move} did nothing to the result, and no refusal says why"


def modules_are_plain(trial: Trial) -> None:
    """In the result, layers are torch's, and in eval mode; a search puts gates and elastic layers there for a while."""
    before = {type(m) for m in trial.start.graph_module.modules()}
    for path, module in trial.after.graph_module.named_modules():
        home = type(module).__module__
        plain = home.startswith(("torch.", *OURS)) or type(module) in before or not path
        assert plain, f"{path} is a {home}.{type(module).__name__}"
        assert not module.training or next(module.children(), None), f"{path} is in train mode"
    known = {n.target for n in trial.start.nodes}
    for node in nonempty(trial.after.nodes):
        home = str(getattr(node.target, "__module__", ""))
        plain = node.op != "call_function" or node.target in known or not home.startswith("fxsurgery")
        assert plain, f"%{node} calls {home}.{node.target}"


def parameters_fit_the_program(trial: Trial) -> None:
    """A parameter has a type and a device that the program has; it trains if its layer did, or all did."""
    before, after = (dict(p.graph_module.named_parameters()) for p in (trial.start, trial.after))
    kinds = {(p.dtype, p.device) for p in before.values()}
    states = {p.requires_grad for p in before.values()}
    for name, parameter in possibly_empty(after.items()):
        assert (parameter.dtype, parameter.device) in kinds, f"{name} is {parameter.dtype} on {parameter.device}"
        wanted = {before[name].requires_grad} if name in before else states
        assert parameter.requires_grad in wanted, f"{name} has requires_grad={parameter.requires_grad}"
        assert parameter.grad is None, f"{name} has a gradient left"


def tensors_stand_alone(trial: Trial) -> None:
    """A tensor is one of the program before, or has memory of its own; what was one tensor stays one."""
    before, after = map(tensors, (trial.start, trial.after))
    owners = {tensor.untyped_storage().data_ptr(): (name, id(tensor)) for name, tensor in before.items()}
    for name, tensor in possibly_empty(after.items()):
        owner = owners.setdefault(tensor.untyped_storage().data_ptr(), (name, id(tensor)))
        assert owner[1] == id(tensor) or not tensor.numel(), f"{name} is a view of {owner[0]}"
    for name, tied in possibly_empty(itertools.combinations([n for n in before if n in after], 2)):
        if before[name] is before[tied]:
            assert after[name] is after[tied], f"{name} and {tied} were one tensor"


def origins_name_entries(trial: Trial) -> None:
    """Each origin names a parameter of before and entries that it has."""
    before, after = (dict(p.graph_module.named_parameters()) for p in (trial.start, trial.after))
    for name, origin in possibly_empty(trial.result.origins.items()):
        sizes = list(before[origin.name].shape)
        for dim, index in possibly_empty(origin.index.items()):
            assert -1 <= int(index.min()) <= int(index.max()) < sizes[dim], f"{name}: entries beyond {origin.name}"
            sizes[dim] = len(index)
        assert list(after[name].shape) == sizes, f"{name} is {tuple(after[name].shape)}, its origin says {sizes}"


def training_goes_as_promised(trial: Trial) -> None:
    """Alike: the same steps lead to the same outputs. On: the outputs in train mode and the statistics are the same."""
    if trial.result.effect is not Effect.EXACT or trial.move.trains is Trains.NO:
        return
    rate = 1e-2 if trial.move.trains is Trains.ALIKE else 0.0
    if rate == 0.0 and norms(trial.after) > norms(trial.start):
        return  # the statistics of a new norm are those of the example inputs, repeated up to n / (n - 1)
    _equal(trial, lambda *pair: tuple(trained(p, rate).outputs for p in reversed(pair)), "in training")


def every_parameter_trains(trial: Trial) -> None:
    """Where every parameter had a gradient, every one has within three steps; no two units stay the same."""
    if trial.move.trains is Trains.NO:
        return
    with NoDeadUnits():
        before, after = trained(trial.start, 1e-2), trained(trial.after, 1e-2)
    faint = {name for name, size in before.largest().items() if size <= FAINT * before.scale}
    for name, size in possibly_empty(after.largest().items()):
        old = trial.result.origins[name].name if name in trial.result.origins else name
        excused = old in faint or (old not in before.gradients and bool(faint))
        assert size > 0 or excused, f"no gradient reaches {name}"
    assert all(o.isfinite().all() for o in nonempty(after.program.run_examples())), "trained, outputs are not finite"
    for path, i, j in possibly_empty(twins(after.program) - twins(before.program)):
        gradient = after.gradients.get(f"{path}.weight")
        # Weights may be equal still only because the steps were smaller than their rounding.
        trains = gradient is not None and gradient[i].max() > FAINT * after.scale
        assert not trains or not torch.allclose(gradient[i], gradient[j], rtol=1e-3, atol=0.0), (
            f"units {i} and {j} of {path} stay equal"
        )


def again_it_works_or_is_refused(trial: Trial) -> None:
    """Run on its own result, the pass changes something, or says why not, or that its place is gone."""
    try:
        again = trial.move(trial.after)
    except SpecError:
        return
    except StructureError as error:
        if "no channel would remain" not in str(error):
            raise
        return
    assert again.changes or again.refusals, "a second time, nothing changed, and no refusal says why"


PROMISES: tuple[Callable[[Trial], None], ...] = (
    changes_are_told_truly,
    doing_nothing_is_explained,
    spec_reads_back,
    shapes_hold_at_other_batch_sizes,
    exact_is_exact,
    exact_is_exact_at_another_size,
    structure_is_analyzed,
    modules_are_plain,
    parameters_fit_the_program,
    tensors_stand_alone,
    origins_name_entries,
    training_goes_as_promised,
    every_parameter_trains,
    again_it_works_or_is_refused,
)


def log_replays(start: Program, after: Program) -> None:
    """The log, run on the program that the chain started from, gives the very same tensors."""
    again = replay(after.log[len(start.log) :], start)
    differing = difference(photograph(again), photograph(after))
    assert not differing, f"the log replays to something else: {differing}"
    assert worst(again.run_examples(), after.run_examples()) == 0.0, "the log replays to other outputs"


def copies_compute_the_same(start: Program, after: Program) -> None:
    """A deep copy is equal, in eval mode after a round through train mode too."""
    twin = copy.deepcopy(after.graph_module).train().eval()
    assert worst(after.with_weights(twin).run_examples(), after.run_examples()) == 0.0, "a deep copy differs"


def can_be_captured_again(start: Program, after: Program) -> None:
    """The result is a model like any other."""
    inputs = after.examples
    again = capture(after.trainable_copy(), inputs.args, example_kwargs=inputs.kwargs)
    assert worst(again.run_examples(), after.run_examples()) < limit(after), "captured again, it differs"


ENDURES: tuple[Callable[[Program, Program], None], ...] = (
    log_replays,
    copies_compute_the_same,
    can_be_captured_again,
)


Outcome = Callable[[Program, Program], tuple[list[Tensor], list[Tensor]]]
"""Given the programs before and after: what was got and what was wanted."""


def _equal(trial: Trial, outcome: Outcome, when: str) -> None:
    """Outputs are equal up to rounding; where they are not, again in float64, where a mistake stays as large."""
    error = worst(*outcome(trial.start, trial.after))
    if error <= limit(trial.start):
        return
    try:
        precise = trial.start.in_double()
        exactly = worst(*outcome(precise, trial.move(precise).program))
    except (SurgeryError, *RUN_ERRORS) as failed:
        raise AssertionError(f"{when} outputs differ by {error:.1e}; in float64 it does not run") from failed
    assert exactly <= 1e3 * TOLERANCE[torch.float64], (
        f"{when} outputs differ by {error:.1e}, in float64 by {exactly:.1e}"
    )
