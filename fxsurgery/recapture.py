"""Capture of the user's model again, in the same way as the model of a result."""

from torch import nn

from fxsurgery.argument_names import keyword
from fxsurgery.batch_layout import statement_of
from fxsurgery.capture import capture
from fxsurgery.capture.attention import is_expandable
from fxsurgery.capture.tracer import COMPOSED
from fxsurgery.errors import CaptureError, SpecError
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program


def captured_as(wanted: Program, model: nn.Module, examples: Inputs) -> Program:
    """Capture `model` with the same leaf modules as in `wanted`.

    A module that cannot be traced becomes a leaf by itself, which other modules of its type need not be.

    Raises:
        CaptureError: it cannot be captured.
    """
    found = None
    problem = CaptureError(
        "the model cannot be captured as the one that was saved; pass the model that was optimized as "
        f"{keyword('original')}"
    )
    for leaf_modules in ((), _leaf_types(wanted)):
        try:
            found = capture(
                model, examples, leaf_modules=leaf_modules, batch_dims=statement_of(examples),
            )  # fmt: skip
        except CaptureError as error:
            problem = error
        if found is not None and found.text() == wanted.text():
            break
    if found is None:
        raise problem
    return found


def _leaf_types(program: Program) -> tuple[type[nn.Module], ...]:
    """Return the types of leaf modules other than torch's own layers."""
    kinds = dict[type[nn.Module], None]()
    for _, module in program.calls(nn.Module):
        torchs = type(module).__module__.startswith("torch.")
        if (
            not torchs
            or isinstance(module, COMPOSED)
            or (isinstance(module, nn.MultiheadAttention) and is_expandable(module))
        ):
            kinds[type(module)] = None
    return tuple(kinds)


def require_same(found: Program, wanted: Program, what: str) -> None:
    """Refuse a program whose tensors differ from those of `wanted` in name or shape.

    Raises:
        SpecError: it names the first tensor that differs; `what` says what this means.
    """
    shapes = [{n: tuple(t.shape) for n, t in p.graph_module.state_dict().items()} for p in (found, wanted)]
    for name in {**shapes[1], **shapes[0]}:
        here, there = (f"{s[name]}" if name in s else "missing" for s in shapes)
        if here != there:
            raise SpecError(
                f"{what}: `{name}` is {here} here and {there} in the result; apply it to the model of the result"
            )
