"""Cuts a case down further than hypothesis does, which knows nothing of steps: for whoever keeps a counterexample.

smaller(graph, lambda g: breaks(g, ["fold-bn"]))
"""

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, replace

from conformance.graphs import Graph
from conformance.promises import check
from conformance.steps import Chunk, Head, Step
from fxsurgery.errors import SpecError


def breaks(graph: Graph, passes: list[str], message: str = "") -> bool:
    """Whether the check fails, with that in its message."""
    try:
        check(graph.program(), passes)
    except SpecError:
        return False
    except Exception as error:  # noqa: BLE001 -- any failure is one
        return message in str(error)
    return False


def smaller(graph: Graph, fails: Callable[[Graph], bool]) -> Graph:
    """A graph on which it still fails, and none a little smaller does: by steps, heads and options."""
    while (found := next((g for g in _neighbors(graph) if _builds(g) and fails(g)), None)) is not None:
        graph = found
    return graph


def _builds(graph: Graph) -> bool:
    try:
        graph.module()
    except Exception:  # noqa: BLE001 -- the cut does not fit
        return False
    return True


def _neighbors(graph: Graph) -> Iterator[Graph]:
    yield from (_without(graph, number) for number in reversed(range(len(graph.steps))))
    if len(graph.heads) > 1:
        yield from (replace(graph, heads=(head,)) for head in graph.heads)
    for number, head in enumerate(graph.heads):
        for smaller_head in _smaller_heads(head):
            yield replace(graph, heads=(*graph.heads[:number], smaller_head, *graph.heads[number + 1 :]))
    for number, step in enumerate(graph.steps):
        for plain in _plainer(step):
            yield replace(graph, steps=(*graph.steps[:number], plain, *graph.steps[number + 1 :]))
    for name in ("seed", "dtype", "frozen"):
        plain = next(f.default for f in fields(graph) if f.name == name)
        if getattr(graph, name) != plain:
            yield replace(graph, **{name: plain})


def _smaller_heads(head: Head) -> Iterator[Head]:
    yield from (replace(head, reads=tuple(r for r in head.reads if r != gone)) for gone in head.reads[1:] or ())
    yield from (replace(head, reads=(kept,)) for kept in head.reads if len(head.reads) > 1)
    yield from _plainer(head)


def _plainer(what: Step | Head) -> Iterator[Step | Head]:
    for f in fields(what):
        if f.default is not MISSING and getattr(what, f.name) != f.default:
            yield replace(what, **{f.name: f.default})


def _without(graph: Graph, number: int) -> Graph:
    """The graph without a step: what read its maps reads its input."""
    gone, at = graph.steps[number], 1
    for step in graph.steps[:number]:
        at += _gives(step)
    count = _gives(gone)

    def moved(index: int) -> int:
        return gone.at if at <= index < at + count else index - count if index >= at + count else index

    steps = (
        replace(step, **{name: moved(getattr(step, name)) for name in ("at", "other", "of") if hasattr(step, name)})
        for step in (*graph.steps[:number], *graph.steps[number + 1 :])
    )
    heads = (replace(head, reads=tuple(dict.fromkeys(map(moved, head.reads)))) for head in graph.heads)
    return replace(graph, steps=tuple(steps), heads=tuple(heads), frozen=tuple(map(moved, graph.frozen)))


def _gives(step: Step) -> int:
    if not isinstance(step, Chunk):
        return 1
    return step.cut if isinstance(step.cut, int) else len(step.cut)
