"""Dataclasses saved field by field, and the check that a file has exactly these fields with these types."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fxsurgery.errors import RunError
from fxsurgery.saving.schema import first_fault


def schema_of(kind: type[Any], **changed: Any) -> Any:  # noqa: ANN401 -- a type that is made here
    """Return the schema of a dataclass that is saved field by field.

    Args:
        kind: the dataclass. Private fields are not saved; fields with a default may be missing from a file.
        changed: types of fields that are saved in another form; None for a field that is not saved.
    """
    kinds = {**get_type_hints(kind), **changed}
    saved = [f for f in fields(kind) if not f.name.startswith("_") and kinds[f.name] is not None]
    needed = {f.name for f in saved if f.default is MISSING and f.default_factory is MISSING}
    model_fields: dict[str, Any] = {f.name: (kinds[f.name], ... if f.name in needed else None) for f in saved}
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid", strict=True), **model_fields)


def require_types(folder: Path, facts: Mapping[str, Any], schema: type[BaseModel]) -> None:
    """Check that saved facts have the names and types of a schema.

    Raises:
        RunError: one has an unknown name or another type.
    """
    try:
        schema.model_validate(facts)
    except (ValidationError, RecursionError) as error:
        raise RunError(
            f"{folder} is damaged: {first_fault(error)}; restore an intact copy, or save it again"
        ) from error
