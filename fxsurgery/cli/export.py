"""`fxsurgery export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from fxsurgery.batch_layout import statement_of
from fxsurgery.cli.errors import ending, give, say
from fxsurgery.cli.options import AsJson, ExampleInputs, ExampleShape, Member, Model, ModelArgs, Original, Seed, Weights
from fxsurgery.cli.sources import wanted
from fxsurgery.deploy import OnnxModel, ToFloat16, export_onnx


def export(  # noqa: PLR0913 -- one for each flag
    model: Model,
    onnx: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The file to write.")],
    *,
    model_args: ModelArgs = None,
    weights: Weights = None,
    original: Original = None,
    member: Member = None,
    example_shape: ExampleShape = None,
    example_inputs: ExampleInputs = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="The operator set; the exporter's choice by default.")
    ] = None,
    exporter: Annotated[
        Literal["auto", "dynamo", "legacy"],
        typer.Option(help="dynamo, legacy (faster, deprecated in PyTorch), or auto: dynamo, else legacy."),
    ] = "auto",
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Compare the file with PyTorch; impossible for a model that draws random numbers.",
        ),
    ] = True,
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help="Export for the batch size of the example inputs alone.")
    ] = False,
    float16: Annotated[
        bool, typer.Option("--float16", help="Convert weights and arithmetic to float16: half the bytes.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Export a result, or any model, to ONNX and check the file against PyTorch.

    ONNX Runtime runs the file at two batch sizes; a file that disagrees with the
    model is deleted. The batch size is dynamic, all other sizes are fixed.

    [bold]Examples[/bold]
      fxsurgery export small small.onnx
      fxsurgery export runs/a small.onnx --opset 17
      fxsurgery export evolved second.onnx --member 2
      fxsurgery export small half.onnx --float16
      fxsurgery export mypkg.nets:resnet original.onnx --example-shape 3,224,224
    """
    with ending(as_json=as_json):
        loaded = wanted(model, model_args, weights, example_shape, example_inputs, seed, original).load().member(member)
        inputs, notes = loaded.known_inputs()
        for note in notes:
            say(f"note: {note}", "yellow")
        is_known = inputs.batch_dims is not None
        file = export_onnx(
            loaded.model, inputs.args, onnx, example_kwargs=inputs.kwargs, opset=opset, exporter=exporter, check=check,
            transforms=(ToFloat16(),) if float16 else (),
            batch_dims=statement_of(inputs) if is_known else None,
            dynamic_batch=not fixed_batch and (inputs.is_resizable or not is_known),
        )  # fmt: skip
    give(asdict(file) if as_json else line(file), as_json=as_json)


def line(file: OnnxModel) -> str:
    """Return a line about an exported file."""
    return f"{file.path}: {file.bytes:,} bytes, opset {file.opset}, by the {file.exporter} exporter; {file.agreement}"
