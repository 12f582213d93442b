"""Optional dependencies: the one message for a package that an extra would have installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from fxsurgery.errors import MissingExtraError


@contextmanager
def requires(extra: str, feature: str) -> Iterator[None]:
    """Import optional packages in the block; if one is not installed, raise an error that names the extra.

    Only a package that is not there counts: an installed one that fails to import raises its own error.

    Args:
        extra: name of the extra in `pyproject.toml`.
        feature: what the user asked for, in the user's terms, such as `executor='ray'`.

    Raises:
        MissingExtraError: a package that the block imports is not installed.

    Example:
        >>> with requires("ray", "executor='ray'"):
        ...     import no_such_package
        Traceback (most recent call last):
        fxsurgery.errors.MissingExtraError: executor='ray' requires the package `no_such_package`, which is not ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package == "fxsurgery":
            raise
        raise MissingExtraError(
            f"{feature} requires the package `{package}`, which is not installed; run: pip install 'fxsurgery[{extra}]'"
        ) from error
