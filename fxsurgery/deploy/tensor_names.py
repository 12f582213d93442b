"""Names of the inputs and outputs of a file, taken from the user's code."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from fxsurgery.errors import ExportError
from fxsurgery.inputs import InputPath, Inputs, tensors_in

if TYPE_CHECKING:
    import onnx


def input_names(model: nn.Module | None, examples: Inputs) -> list[str]:
    """Return a name for each input tensor: that of its parameter of `forward` if there is a model, or its dict key.

    Raises:
        ExportError: the inputs hold a container that PyTorch's pytree does not know.
    """
    parameters = [] if model is None else _parameters(model)
    plain = [name for name, kind in parameters if kind is not inspect.Parameter.VAR_POSITIONAL]
    rest = next((name for name, kind in parameters if kind is inspect.Parameter.VAR_POSITIONAL), "input")
    places: list[tuple[InputPath, Any]] = [((name,), x) for name, x in zip(plain, examples.args, strict=False)]
    places += [((rest, i), x) for i, x in enumerate(examples.args[len(plain) :])]
    places += [((name,), x) for name, x in examples.kwargs.items()]
    found = [place for at, x in places for place, _ in tensors_in(x, at)]
    if len(found) != len(examples.tensors):
        raise ExportError(
            "the example inputs hold tensors in a container that torch.utils._pytree does not know; pass tuples, "
            "lists and dicts"
        )
    return _readable(found, set())


def output_names(output: object, inputs: Iterable[str]) -> list[str]:
    """Return a name for each output tensor that no input has: its dict key or field, else its position."""
    return _readable([place for place, _ in tensors_in(output, ("output",))], set(inputs))


def _parameters(model: nn.Module) -> list[tuple[str, Any]]:
    try:
        found = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return [(p.name, p.kind) for p in found if p.kind in positional]


def _readable(places: list[InputPath], taken: set[str]) -> list[str]:
    """Return the last name of each path, with the indices after it; the whole path if that is ambiguous."""
    short = [_joined(place[max(i for i, key in enumerate(place) if isinstance(key, str)) :]) for place in places]
    names = list[str]()
    for place, wanted in zip(places, short, strict=True):
        name = wanted if short.count(wanted) == 1 and wanted not in taken else _joined(place)
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def _joined(place: InputPath) -> str:
    return re.sub(r"\W", "_", "_".join(map(str, place)))


def rename(file: "onnx.ModelProto", names: Mapping[str, str]) -> None:
    """Rename values of a file in place. An inner value that already has a wanted name gets another one."""
    graphs = [*_graphs(file.graph)]
    taken = {name for graph in graphs for name in _values(graph)} | set(names.values())
    changed = dict(names)
    for wanted in names.values():
        if wanted in taken and wanted not in names:
            fresh = f"{wanted}_"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            changed[wanted] = fresh
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = changed.get(value.name, value.name)
        for node in graph.node:
            node.input[:] = [changed.get(name, name) for name in node.input]
            node.output[:] = [changed.get(name, name) for name in node.output]


def _graphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """Yield the graph, and the graphs of its branches and loops."""
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute):
        for inner in (attribute.g, *attribute.graphs):
            if inner.node or inner.output:
                yield from _graphs(inner)


def _values(graph: "onnx.GraphProto") -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output
