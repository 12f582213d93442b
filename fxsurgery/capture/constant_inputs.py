"""Inputs other than tensors: forward computed with their values, which are constants of the graph."""

import math
import operator
from collections.abc import Sequence

from torch import Tensor, fx

from fxsurgery.capture.input_checks import before_computation, check
from fxsurgery.capture.outputs import CONSTANT_TYPES
from fxsurgery.inputs import Inputs
from fxsurgery.printable import printable

REMEDY = "capture the model with the value that you need"


def check_constants(graph: fx.Graph, inputs: Inputs, names: Sequence[str]) -> tuple[str, ...]:
    """Make a graph raise when an input that is no tensor has another value than at capture.

    Args:
        graph: changed in place; its placeholders are the leaves of `inputs`.
        inputs: the example inputs.
        names: the user's name of each leaf.

    Returns:
        One message per input that is fixed; none for `None`.
    """
    placeholders, messages = [node for node in graph.nodes if node.op == "placeholder"], list[str]()
    for node, value, name in zip(placeholders, inputs.leaves, names, strict=True):
        if isinstance(value, Tensor):
            continue
        is_nan = isinstance(value, float) and math.isnan(value)
        if type(value) not in CONSTANT_TYPES or is_nan:
            messages.append(f"`{name}` is a constant of the graph, which ignores another {type(value).__name__}")
            continue
        message = f"`{name}` must be {printable(repr(value))}, as at capture: the graph computes with this constant"
        if value is not None:
            messages.append(message)
        is_single = value is None or isinstance(value, bool)
        with before_computation(graph):
            same = graph.call_function(operator.is_ if is_single else operator.eq, (node, value))
            check(graph, same, f"{message}; {REMEDY}")
    return tuple(messages)
