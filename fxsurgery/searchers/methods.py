"""Every method, by name. This table is the registry: a method is listed here or it does not exist."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fxsurgery.errors import SurgeryError
from fxsurgery.program import Program
from fxsurgery.searchers import dnal, prune
from fxsurgery.searchers.session import Outcome, Settings, Stage
from fxsurgery.searchers.widths import Space


@dataclass(frozen=True, eq=False)
class Method:
    """A way to make a model smaller."""

    name: str
    settings: type[Settings]
    search: Callable[..., Outcome]
    """`search(program, budget, settings, session, trained=...)`."""
    stages: Callable[..., list[Stage]]
    """`stages(settings, session, trained=...)`: what the search will train."""
    space: Callable[[Program, Any], Space]
    """The widths that it chooses among."""
    needs_data: Callable[[Any], str | None]
    """Why these settings cannot do without the user's data; `None` where they can."""


METHODS = {
    "dnal": Method("dnal", dnal.Dnal, dnal.search, dnal.stages, dnal.widths, lambda _: None),
    "prune": Method("prune", prune.Prune, prune.search, prune.stages, prune.widths, prune.needs_data),
}


def method_of(name: str | None, config: object) -> tuple[Method, Any]:
    """The method of that name with its settings, either from the other where only one is given.

    Raises:
        SurgeryError: there is no such method, or the settings are another's.
    """
    if name is not None and name not in METHODS:
        raise SurgeryError(f"no method is named {name!r}; there are: {', '.join(METHODS)}")
    if config is None:
        method = METHODS[name or "dnal"]
        return method, method.settings()
    found = next((m for m in METHODS.values() if type(config) is m.settings), None)
    if found is None:
        kinds = ", ".join(m.settings.__name__ for m in METHODS.values())
        raise SurgeryError(f"config is a {type(config).__name__}; it must be one of {kinds}")
    if name not in {None, found.name}:
        wanted = METHODS[str(name)].settings.__name__
        raise SurgeryError(f"method={name!r} takes config={wanted}(...), not {type(config).__name__}")
    return found, config
