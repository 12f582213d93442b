"""Loading of saved results."""

from collections.abc import Mapping
from pathlib import Path
from types import GenericAlias

from torch import nn

from fxsurgery.budget import Cost
from fxsurgery.errors import RunError, reason_of
from fxsurgery.option_types import FilePath, checked
from fxsurgery.program import Program
from fxsurgery.result import Result
from fxsurgery.result_facts import PROGRAMS, BeforeAfter, member_folder
from fxsurgery.runs.layout import result_directory
from fxsurgery.saving import open_result
from fxsurgery.saving.facts import require_types, schema_of
from fxsurgery.saving.schema import SavedCost, SavedResult
from fxsurgery.searchers.common.pareto import ParetoMember, member_from_plain
from fxsurgery.searchers.common.trials import SearchRecord, Trial, from_plain
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training import Score


@checked(RunError)
@plain_surroundings()
def load(folder: FilePath, *, original: nn.Module | None = None) -> Result:
    """Load a result that `Result.save` wrote, on the CPU. No code in the folder is executed.

    Args:
        folder: the folder, or the directory of a finished run.
        original: your model, required if modules or functions of it were captured as leaves: these are taken from it,
            modules as copies with the saved weights. It is captured again on the saved example inputs, and must call
            them in the same way.

    Returns:
        The result, with everything that was saved.

    Raises:
        RunError: there is no result, since the run has not finished or the folder is another; it is damaged or of a
            later version; or `original` is required. The message says what to do.
        SavingError: the folder requires an operation that loading does not perform.

    Example:
        result = fxsurgery.load("runs/a")
        result.export_onnx("small.onnx")
    """
    folder = result_directory(Path(folder))
    opened = open_result(folder)
    facts = opened.facts
    require_types(folder, facts, _FACTS)
    given = dict(facts)
    try:
        given["metrics"] = {split: BeforeAfter(*pair) for split, pair in facts["metrics"].items()}
        given["figures"] = {name: BeforeAfter(*pair) for name, pair in facts.get("figures", {}).items()}
        given["search"] = from_plain(facts["search"]) if "search" in facts else None
        members = list(facts.get("pareto", ()))
        programs = opened.programs((*PROGRAMS, *map(member_folder, range(len(members)))), original)
        given |= {name: programs[name] for name in PROGRAMS}
        given["pareto"] = tuple(member_from_plain(m, programs[member_folder(i)]) for i, m in enumerate(members))
        return Result(**given, _saved_costs=_costs(folder, opened.saved, programs))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{folder} is damaged: {reason_of(error)}; restore an intact copy, or save it again") from error


def _costs(folder: Path, saved: SavedResult, programs: Mapping[str, Program]) -> tuple[Cost | None, Cost | None]:
    """Return the saved costs of original and result.

    Raises:
        RunError: the numbers of parameters differ from those of the saved programs.
    """
    found = list[Cost | None]()
    for name in ("original", "program"):
        stated = None if saved.costs is None else saved.costs.get(name)
        counted = sum(p.numel() for p in programs[name].graph_module.parameters())
        if stated is not None and stated.params != counted:
            numbers = f"{counted:,} parameters, and {stated.params:,} by its file"
            raise RunError(f"{folder} is damaged: `{name}` has {numbers}; restore an intact copy, or save it again")
        found.append(None if stated is None else _cost_of_saved(stated))
    return found[0], found[1]


def _cost_of_saved(saved: SavedCost) -> Cost:
    return Cost(
        params=saved.params,
        macs=saved.macs,
        uncounted=tuple(saved.uncounted),
        unknown_macs=tuple(saved.unknown_macs),
    )


_TRIAL, _PAIRS = schema_of(Trial), dict[str, tuple[float, float]]
_MEMBER = schema_of(ParetoMember, program=None, trial=_TRIAL, score=schema_of(Score))
_FACTS = schema_of(
    Result,
    program=None,
    original=None,
    metrics=_PAIRS,
    figures=_PAIRS,
    search=schema_of(SearchRecord, trials=GenericAlias(list, (_TRIAL,))),
    pareto=GenericAlias(list, (_MEMBER,)),
)
"""Types of the fields of `result.json` other than the programs."""
