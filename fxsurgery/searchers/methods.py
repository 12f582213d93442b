"""The registry of search methods, by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from fxsurgery.errors import ArgumentError, SurgeryError
from fxsurgery.option_text import Wording
from fxsurgery.program import Program
from fxsurgery.searchers import dnal, ectonas, prune
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.common.width_constraints import WidthConstraints
from fxsurgery.searchers.common.widths import Space
from fxsurgery.searchers.session import SearchOutcome, Stage
from fxsurgery.suggestions import hint

MethodName: TypeAlias = Annotated[
    Literal["dnal", "prune", "ectonas"], Wording(": no method is named {value}; there are: dnal, prune, ectonas")
]


@dataclass(frozen=True, eq=False)
class Method:
    """A search method."""

    name: str
    settings: type[Settings]
    search: Callable[..., SearchOutcome]
    """`search(program, budget, settings, session, trained=...)`: runs the method."""
    stages: Callable[..., list[Stage]]
    """`stages(settings, session, trained=...)`: the stages that the search will train."""
    space: Callable[[Program, Any, WidthConstraints], Space] | None = None
    """`space(program, settings, constraints)`: the widths to choose among; `None` if it grows networks too."""
    needs_data: Callable[[Any], str | None] = lambda _: None
    """Returns why the settings need the user's data; `None` if they do not."""
    require_goal: Callable[..., None] = lambda *_, **__: None
    """`require_goal(budget, settings, has_ratios=...)`: refuses a budget that does not go with the settings."""
    plan_notes: Callable[..., tuple[str, ...]] = lambda *_, **__: ()
    """`plan_notes(program, settings, session, trained=...)`: further notes for a plan."""
    evolves: bool = False
    """Whether it trains many networks until its spend is used up."""


NOTHING: Mapping[str, Any] = MappingProxyType({})

METHODS = {
    "dnal": Method("dnal", dnal.Dnal, dnal.search, dnal.stages, dnal.widths, require_goal=dnal.require_goal),
    "prune": Method("prune", prune.Prune, prune.search, prune.stages, prune.widths, prune.needs_data),
    "ectonas": Method(
        "ectonas", ectonas.Ectonas, ectonas.search, ectonas.stages, plan_notes=ectonas.plan_notes, evolves=True
    ),
}


def method_of(
    name: str | None, config: object, named: Mapping[str, Any] = NOTHING, beside: Iterable[str] = ()
) -> tuple[Method, Any]:
    """Return a method and its settings, the one derived from the other if only one is given.

    Args:
        name: the name of the method.
        config: the settings as one object.
        named: single settings by name, instead of `config`.
        beside: other valid argument names, for suggestions.

    Raises:
        SurgeryError: the method or a setting does not exist, or the settings belong to another method.
    """
    if config is None:
        method = METHODS[name or "dnal"]
        return method, _made(method, named, beside)
    if named:
        raise SurgeryError(f"{next(iter(named))}= and config= at once: give all settings in config=")
    found = next((m for m in METHODS.values() if type(config) is m.settings), None)
    if found is None:
        kinds = ", ".join(m.settings.__name__ for m in METHODS.values())
        raise SurgeryError(f"config is a {type(config).__name__}; it must be one of {kinds}")
    if name not in {None, found.name}:
        wanted = METHODS[str(name)].settings.__name__
        raise SurgeryError(f"method={name!r} takes config={wanted}(...), not {type(config).__name__}")
    return found, config


def _made(method: Method, named: Mapping[str, Any], beside: Iterable[str]) -> Any:  # noqa: ANN401 -- the method's own settings
    known = [field.name for field in fields(method.settings)]
    if unknown := [name for name in named if name not in known]:
        owners = [m.name for m in METHODS.values() if unknown[0] in {field.name for field in fields(m.settings)}]
        remedy = f"use method={owners[0]!r}, which has it" if owners else hint(unknown[0], [*known, *beside])
        raise ArgumentError(
            f"optimize takes no {unknown[0]!r}, nor does method={method.name!r} have such a setting; {remedy}"
        ).at(unknown[0])
    return method.settings(**named)
