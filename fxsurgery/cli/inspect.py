"""`fxsurgery inspect`."""

from typing import Any

from torch import nn

from fxsurgery.capture import capture
from fxsurgery.cli.errors import ending, give, say
from fxsurgery.cli.options import (
    AsJson,
    ExampleInputs,
    ExampleShape,
    LeafModules,
    Model,
    ModelArgs,
    Original,
    Seed,
    Weights,
)
from fxsurgery.cli.sources import Loaded, module_class, wanted
from fxsurgery.inspection import Inspection, inspect_program
from fxsurgery.program import Program


def inspect(  # noqa: PLR0913 -- one for each flag
    model: Model,
    *,
    model_args: ModelArgs = None,
    weights: Weights = None,
    original: Original = None,
    example_shape: ExampleShape = None,
    example_inputs: ExampleInputs = None,
    leaf_modules: LeafModules = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Show which layers of a model can shrink, and why others cannot. Nothing is trained.

    The output has the parameters and multiply-accumulates (MACs), the fraction
    of them that surgery can remove, each width that can change with its
    removable units, and the reason for every layer that keeps its size.

    [bold]Examples[/bold]
      fxsurgery inspect torchvision.models:resnet18
      fxsurgery inspect nets.py:Net --model-args width=32 --example-shape 3,8,8
      fxsurgery inspect bert.py:tiny --example-inputs bert.py:inputs --json
      fxsurgery inspect runs/a
    """
    with ending(as_json=as_json):
        loaded = wanted(model, model_args, weights, example_shape, example_inputs, seed, original).load()
        program = captured(loaded, tuple(map(module_class, leaf_modules or [])))
        found = inspect_program(program)
    give(_as_plain(found) if as_json else found, as_json=as_json)


def captured(loaded: Loaded, leaf_modules: tuple[type[nn.Module], ...]) -> Program:
    """Capture the model as a program.

    Raises:
        CaptureError: the model cannot be captured as a graph.
        DataError: its inputs are not given and cannot be inferred.
    """
    if loaded.result is not None:
        return loaded.result.program
    inputs, notes = loaded.known_inputs()
    for note in notes:
        say(f"note: {note}", "yellow")
    return capture(loaded.model, inputs, leaf_modules=leaf_modules)


def _as_plain(found: Inspection) -> dict[str, Any]:
    return {
        "params": found.cost.params,
        "macs": found.cost.macs,
        "editable_macs": found.editable_macs,
        "editable_params": found.editable_params,
        "widths": [vars(width) for width in found.widths],
        "fixed": [vars(part) for part in found.fixed],
        "notes": found.notes,
    }
