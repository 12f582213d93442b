"""The commands, in the order of a typical workflow.

A command is the function of its name in the module of its name, which is imported when the command is called: listing
the commands must not import PyTorch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typing_extensions import override

SUMMARIES = {
    "demo": "Train a small network on digits, halve its MACs, fine-tune, export to ONNX and measure both.",
    "inspect": "Show which layers of a model can shrink, and why others cannot. Nothing is trained.",
    "optimize": "Make a model smaller: search for what to remove, remove it, fine-tune.",
    "report": "Write an HTML report of a result: before and after, widths by layer, training curves.",
    "bench": "Measure the latency of one sample, model against model, through ONNX Runtime.",
    "export": "Export a result, or any model, to ONNX and check the file against PyTorch.",
}
"""First paragraph of the help of each command."""
ANNOUNCED = {"demo": "importing PyTorch"}
"""Line to print before a command is imported, which takes seconds."""

_UsageError: Any = typer.BadParameter.__base__
"""Base class of the errors of a command line, which typer does not export."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:  # noqa: FBT001 -- as typer calls it
    if wanted:
        typer.echo(f"fxsurgery {version('fxsurgery')}")
        raise typer.Exit


@app.callback(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    r"""Make your own PyTorch model smaller and faster, or better.

    [bold]Typical workflow[/bold]
      1. [cyan]demo[/cyan]      see every step on a small network, in about a minute
      2. [cyan]inspect[/cyan]   which layers of your model can shrink, and why others cannot
      3. [cyan]optimize[/cyan]  make it smaller; start with --dry-run to see the plan
      4. [cyan]report[/cyan]    an HTML report of the result
      5. [cyan]bench[/cyan]     original against result, on this machine
      6. [cyan]export[/cyan]    the ONNX file, checked against PyTorch

    [bold]Examples[/bold]
      fxsurgery inspect mypkg.nets:resnet --example-shape 3,224,224
      fxsurgery optimize mypkg.nets:resnet --out small --dry-run
      fxsurgery optimize mypkg.nets:resnet --train-data mypkg.data:train \
          --val-data mypkg.data:val --budget macs=0.5 --out small
      fxsurgery bench small

    Name a model as [cyan]module:factory[/cyan] or [cyan]path/to/file.py:factory[/cyan]; the current
    directory is importable. For details see fxsurgery optimize --help; for
    completion of commands and flags run fxsurgery --install-completion.
    """
    del version


class LazyCommand(TyperCommand):
    """A command that is listed by its summary and imported when it is called."""

    def loaded(self) -> Any:  # noqa: ANN401 -- typer does not export the class of its commands
        """Import the command."""
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        alone.command()(getattr(import_module(f"fxsurgery.cli.{self.name}"), str(self.name)))
        return typer.main.get_command(alone)

    @override
    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        is_run = not (extra.get("resilient_parsing") or {"-h", "--help"} & set(args))
        if self.name in ANNOUNCED and is_run:
            typer.echo(ANNOUNCED[self.name], err=True)
        loaded = self.loaded()
        try:
            return loaded.make_context(info_name, args, parent, **extra)
        except _UsageError as error:
            if hasattr(error, "possibilities"):  # an option that does not exist
                flags = [text for option in loaded.params for text in (*option.opts, *option.secondary_opts)]
                unknown_flag = import_module("fxsurgery.cli.unknown_flags").unknown_flag
                error.message, error.possibilities = unknown_flag(error.option_name, flags), None
            raise


def _listed() -> None:
    """Placeholder for a command that is not imported yet."""


for name, summary in SUMMARIES.items():
    app.command(name, cls=LazyCommand, help=summary)(_listed)
