"""fxsurgery on one model: capture, analysis, a random removal over all channel groups, and its proof.

A model passes when it was captured, lost parameters, equals the silenced model (normalized over the survivors
where a norm ran over what went) to 1e-5 relative in float32, takes a training step, and a second round of
surgery holds the same. A difference above 1e-5 is checked again in float64: rounding shrinks with the
precision, a mistake does not.
"""

import inspect
import math
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.coverage.record import Journal, first_line, without_paths
from fxsurgery import capture
from fxsurgery.analysis.cost import CostTerms, cost, mac_terms, param_terms
from fxsurgery.analysis.structure import Structure, structure
from fxsurgery.comparison import relative_error
from fxsurgery.deploy import export_onnx
from fxsurgery.edit import Editor
from fxsurgery.errors import ExportError, PassCrashedError, SurgeryError, VerifyError
from fxsurgery.inputs import Inputs
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program
from fxsurgery.rewriting.resize import resize
from fxsurgery.surgery import PassResult

FLOAT32_LIMIT = 1e-5
FLOAT64_LIMIT = 1e-10
STEP = 1e-4

Drop = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Removal:
    """Fraction of the units to remove, and whether to try the export."""

    ratio: float = 0.3
    seed: int = 0
    exported: bool = False


def run(journal: Journal, model: nn.Module, inputs: Inputs, removal: Removal) -> None:
    """Run all stages on `model`; the journal has the verdict, or the error that ended it."""
    journal.arm()
    with journal.stage("capture"):
        program = _captured(model, inputs)
    journal.row.captured, journal.row.notes = True, [without_paths(note) for note in program.notes]
    result = _shrunk(journal, replace(program), removal)
    if result is None:
        return
    journal.arm()
    with journal.stage("train"):
        failure = _train(result.program, model, inputs)
    if failure:
        journal.end("crash", f"train: {failure}")
        return
    if _again(journal, result.program, removal):
        _finish(journal, model, result.program, removal)


def verdict(error: BaseException, stage: str) -> str:
    """Return the verdict of an error: refused if it was foreseen, wrong if numbers differ, crash otherwise."""
    if isinstance(error, VerifyError) and "differ" in str(error):
        return "wrong"
    if isinstance(error, VerifyError | PassCrashedError) or not isinstance(error, SurgeryError):
        return "crash"
    return "refused" if stage in {"capture", "analysis", "rewrite", "proof"} else "crash"


def choose(facts: Structure, ratio: float, seed: int) -> Drop:
    """Return a random fraction of all units, except those that would leave some tensor empty."""
    units = np.concatenate([group.units for group in facts.groups]) if facts.groups else np.zeros(0, np.int64)
    order = np.random.default_rng(seed).permutation(units)
    keep = facts.mask(order[: math.ceil(ratio * len(order))])
    while emptied := facts.empty_dims(keep):
        keep[emptied] = True
    gone = ((group.name, np.flatnonzero(~keep[group.units]).tolist()) for group in facts.groups)
    return tuple((name, tuple(positions)) for name, positions in gone if positions)


def _shrunk(journal: Journal, program: Program, removal: Removal) -> PassResult | None:
    """Return the proven result of the first round, or the verdict if there is none."""
    row = journal.row
    with journal.stage("analysis"):
        facts = structure(program)
    drop = choose(facts, removal.ratio, removal.seed)
    row.unknown = sorted(facts.unknown)
    row.figures |= _reach(program, facts, drop)
    if not drop:
        journal.end("nothing", "; ".join(["no unit can be removed", *_obstacles(facts)]))
        return None
    pruning = PruneChannels(drop)
    with journal.stage("rewrite"):
        edit = Editor(program)
        resize(edit, facts, pruning.keep(program))
        edit.finish("coverage")
    with journal.stage("proof"):
        result = pruning(program)
    row.refusals = [f"{refusal.node}: {refusal.reason}" for refusal in result.refusals]
    before, after = cost(program), cost(result.program)
    row.figures |= {
        "params left": after.params / before.params,
        "macs left": after.macs / before.macs if before.macs else None,
        "effect": _difference(result.program, program),
    }
    if after.params >= before.params:
        journal.end("nothing", "no parameter went")
        return None
    return result if _proven(journal, pruning, program, result, "error") else None


def _reach(program: Program, facts: Structure, drop: Drop) -> dict[str, float]:
    """Return the size of the program, and how much of it surgery can reach."""
    now = cost(program)
    return {
        "nodes": len(program.nodes),
        "params": now.params,
        "macs": now.macs,
        "units": sum(len(group.units) for group in facts.groups),
        "removed": sum(len(positions) for _, positions in drop),
        "params in units": _removable(param_terms(program)),
        "MACs in units": _removable(mac_terms(program)),
    }


def _obstacles(facts: Structure) -> list[str]:
    """Return the operations that freeze the most units."""
    needed = Counter[str]()
    for freeze in facts.freezes:
        needed[freeze.op] += freeze.count
    return [f"{op} needs all of {units}" for op, units in needed.most_common(3)]


def _again(journal: Journal, program: Program, removal: Removal) -> bool:
    """Run a second round on the result of the first one."""
    journal.arm()
    with journal.stage("second round"):
        drop = choose(structure(program), removal.ratio, removal.seed + 1)
        pruning = PruneChannels(drop)
        second = pruning(program)
    return not drop or _proven(journal, pruning, program, second, "second error")


def _finish(journal: Journal, model: nn.Module, program: Program, removal: Removal) -> None:
    if removal.exported:
        # What kills the process from here on is the exporter's doing; the surgery has passed.
        journal.row.onnx = "hung"
        journal.end("pass")
        journal.arm()
        with journal.stage("onnx"):
            journal.row.onnx = _export(program.graph_module, program.examples, model)
    journal.end("pass")


def _captured(model: nn.Module, inputs: Inputs) -> Program:
    if not inputs.kwargs:
        return capture(model, inputs.args)
    if "example_kwargs" in inspect.signature(capture).parameters:
        return capture(model, inputs.args, example_kwargs=dict(inputs.kwargs))
    bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    return capture(model, *bound.args, **bound.kwargs)


def _proven(journal: Journal, pruning: PruneChannels, program: Program, result: PassResult, name: str) -> bool:
    """Check that the result equals its reference; return the verdict if it does not."""
    journal.row.figures[name] = error = result.error
    if error is None:
        journal.end("unproven", "; ".join(journal.row.refusals) or "no reference to compare with")
        return False
    if error <= FLOAT32_LIMIT:
        return True
    journal.arm()
    try:
        precise = pruning(program.in_double()).error
    except Exception as failure:  # noqa: BLE001 - models with float32 constants do not run in float64
        journal.end("wrong", f"{name} {error:.1e} in float32; float64: {first_line(failure)}")
        return False
    journal.row.figures[f"{name} in float64"] = precise
    if precise is None or precise > FLOAT64_LIMIT:
        journal.end("wrong", f"{name} {error:.1e} in float32, {precise} in float64")
        return False
    return True


def _removable(terms: CostTerms) -> float:
    """Return the fraction of an amount that the removal of some unit removes."""
    total = sum(terms.amounts)
    fixed = (math.prod(float((ids == 0).mean()) for ids in dims) for dims in terms.dims)
    return sum(a * (1 - f) for a, f in zip(terms.amounts, fixed, strict=True)) / total if total else 0.0


def _difference(got: Program, wanted: Program) -> float | None:
    """Return how much the removal changed the outputs: a removal without effect would prove nothing."""
    pairs = list(zip(got.run_examples(), wanted.run_examples(), strict=True))
    return max((relative_error(a, b) for a, b in pairs if a.shape == b.shape), default=None)


def _train(program: Program, model: nn.Module, inputs: Inputs) -> str:
    """Return what prevents a step of SGD; empty if nothing does, or if the original model cannot take one either."""
    failures = [_step(program.trainable_copy(), batch) for batch in (inputs.grown(), inputs)]
    if not all(failures):
        return ""
    return failures[-1] if not _step(model, inputs) else ""


def _step(model: nn.Module, inputs: Inputs) -> str:
    model.train()
    try:
        outputs = model(*inputs.clone().args, **inputs.clone().kwargs)
        scores = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not scores:
            return "no output depends on a parameter"
        loss = torch.stack([score.float().abs().mean() for score in scores]).mean()
        loss.backward()
        torch.optim.SGD(model.parameters(), STEP).step()
    except Exception as error:  # noqa: BLE001 - it is the answer
        return first_line(error)
    if not torch.isfinite(loss):
        return "the loss is not finite"
    return "" if any(p.grad is not None and p.grad.any() for p in model.parameters()) else "no gradient arrived"


def _export(pruned: nn.Module, inputs: Inputs, original: nn.Module) -> str:
    named = "example_kwargs" in inspect.signature(export_onnx).parameters
    if inputs.kwargs and not named:
        return "not tried: the export takes positional inputs"
    failure = _exports(pruned, inputs)
    if not failure:
        return "ok"
    return f"{'the original too' if _exports(original.eval(), inputs) else 'the original exports'}: {failure}"


def _exports(model: nn.Module, inputs: Inputs) -> str:
    """Return what prevents the export; empty if the file agrees with the model, at any batch or at the example's."""
    by_name = {"example_kwargs": dict(inputs.kwargs)} if inputs.kwargs else {}
    failure = ""
    with tempfile.TemporaryDirectory() as folder:
        for dynamic in (True, False):
            try:
                export_onnx(model, inputs.args, Path(folder) / "model.onnx", dynamic_batch=dynamic, **by_name)
            except ExportError as error:
                failure = first_line(error)  # that of the easier wish counts
            except Exception as error:  # noqa: BLE001 - it is the answer
                return first_line(error)
            else:
                return ""
    return failure
