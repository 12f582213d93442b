"""Line wrapping of generated code at brackets, as a formatter does it."""

from collections.abc import Iterator

WIDTH = 100
_OPEN, _CLOSE = "([{", ")]}"


def wrapped(line: str, indent: int, room: int = 0) -> list[str]:
    """Wrap a statement, or a part of one, to lines of at most `WIDTH` columns where brackets allow it.

    Args:
        line: the code.
        indent: number of spaces before it.
        room: number of columns to leave free at the end, for a comma.
    """
    pad = " " * indent
    if len(pad) + len(line) + room <= WIDTH or (found := _last_group(line)) is None:
        return [pad + line]
    start, end = found
    head, body, tail = line[: start + 1], line[start + 1 : end], line[end:]
    inner = " " * (indent + 4)
    parts = list(_parts(body))
    if len(inner) + len(body) <= WIDTH and not body.endswith(","):
        return [pad + head, inner + body, pad + tail]
    comma = "," if len(parts) > 1 or ("(" in head[-1:] and not _is_hugged(parts[0])) else ""
    lines = [pad + head]
    for part in parts:
        broken = wrapped(part, indent + 4, len(comma))
        broken[-1] += comma
        lines += broken
    return [*lines, pad + tail]


def _is_hugged(part: str) -> bool:
    """Return True if a single argument is itself a bracket, after which a formatter puts no comma."""
    return part[:1] in _OPEN or part.startswith("**")


def _last_group(line: str) -> tuple[int, int] | None:
    """Return where the last nonempty outermost bracket of `line` opens and closes; None without one."""
    depth, start, found = 0, 0, None
    for position, character in _code(line):
        if character in _OPEN:
            if not depth:
                start = position
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if not depth and position > start + 1:
                found = start, position
    return found


def _parts(body: str) -> Iterator[str]:
    """Yield the parts between outermost commas."""
    depth = begun = 0
    for position, character in _code(body):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and not depth:
            yield body[begun:position].strip()
            begun = position + 1
    if rest := body[begun:].strip():
        yield rest


def _code(line: str) -> Iterator[tuple[int, str]]:
    """Yield the characters outside of string literals, with their positions."""
    quote, skipped = "", False
    for position, character in enumerate(line):
        if skipped:
            skipped = False
        elif quote:
            skipped = character == "\\"
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            yield position, character
