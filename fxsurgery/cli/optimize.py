"""`fxsurgery optimize`, with a flag for each argument of a run."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fxsurgery.argument_names import entry, naming_by
from fxsurgery.cli.errors import ending, give, say
from fxsurgery.cli.options import AsJson, option, parameters
from fxsurgery.cli.running import Done, as_plain, dry, run
from fxsurgery.cli.sources import model_arguments
from fxsurgery.config import FlagNames, RunConfig, assignments, effective, flag, layer_ratios, origins_of, read

_MODEL = "[cyan]module:factory[/cyan], [cyan]file.py:factory[/cyan] or a saved directory; may be in the config file."
_CONFIG = "A .toml or .json file with the same arguments; flags override it."
_DRY = "Show the reachable costs, the stages and the time they take; train nothing."
_EXAMPLES: Mapping[str, tuple[str, float]] = {"budget": ("macs", 0.5), "spend": ("epochs", 20)}
"""A limit for each flag of limits, for messages."""
_PRINT = "Print the merged config with every setting, as JSON for --config, and exit."


def _with_keys(command: Callable[..., None]) -> Callable[..., None]:
    """Replace `**asked` of a command by a flag for each key of the config file."""
    signature = inspect.signature(command)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    keys = [*own[:2], *parameters(), *own[2:]]
    command.__signature__ = signature.replace(parameters=keys)  # type: ignore[attr-defined]  # where typer looks
    return command


@_with_keys
def optimize(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL)] = None,
    *,
    config: Annotated[Path | None, option(None, "FILE", _CONFIG, "--config", "-c")] = None,
    dry_run: Annotated[bool, option(None, "", _DRY, "--dry-run", "-n")] = False,
    print_config: Annotated[bool, option(None, "", _PRINT, "--print-config")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, option(None, "", "Show no progress, only the result.", "--quiet", "-q")] = False,
    **asked: Any,  # noqa: ANN401 -- a flag for each key of the config file
) -> None:
    r"""Make a model smaller: search for what to remove, remove it, fine-tune.

    With --method ectonas the model evolves: it grows where that improves it and
    shrinks elsewhere.

    Start with --dry-run to see which costs are reachable and how long the run
    takes. Without data, synthetic inputs are used and the model learns from its
    own outputs; fine-tune such a result on your data.

    [bold]Examples[/bold]
      fxsurgery optimize mypkg.nets:resnet --train-data mypkg.data:train \
          --val-data mypkg.data:val --budget macs=0.5 --out small --dry-run
      fxsurgery optimize mypkg.nets:resnet --weights best.pt \
          --train-data train.npz --val-data val.npz --run-dir runs/a --resume
      fxsurgery optimize nets.py:Net --model-args width=64 --budget params=200k \
          --set learning_rate=0.01 --set align=4 --out small --onnx small.onnx
      fxsurgery optimize nets.py:Net --train-data train.npz --val-data val.npz \
          --method ectonas --spend epochs=300 --set greediness=0.5 \
          --executor processes --workers 4 --out evolved
      fxsurgery optimize --config run.toml --seed 1 --out small-1

    [bold]DATA[/bold] is module:name or file.py:name of a DataLoader, a Dataset, a tuple
    (x, y), a dict of arrays, a Task, or a function that gives one of these; or
    an .npz or .safetensors file, of arrays x and y, or of a batch by name.

    [bold]AMOUNT[/bold] up to 1.0, or with %, is a fraction of the original: macs=0.5 and
    macs=50%. A larger amount is absolute: params=1.2M, latency_ms=2.5.

    [bold]The config file[/bold] has the same names with _ for -, and tables \[budget],
    \[spend], \[ratios], \[settings] and \[model_args]. Flags override it:
    --budget, --spend and --ratio replace their tables, --set and --model-args
    single entries.
    """
    with ending(as_json=as_json):
        flags = _said({"model": model, **asked})
        checked, of_method = read(config, flags)
        with naming_by(FlagNames(origins_of(config, flags))):
            if print_config:
                shown: object = effective(checked, of_method)
            elif dry_run:
                shown = dry(checked, of_method)
            else:
                shown = run(checked, of_method, verbose=not quiet)
    give(as_plain(shown) if as_json else shown, as_json=as_json or print_config)
    if isinstance(shown, Done) and shown.kept.failures:
        for failure in shown.kept.failures:
            say(f"error: {failure}", "red", by_all=True)
        raise typer.Exit(1)


def _said(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the flags that were given, by config key."""
    said = {name: value for name, value in asked.items() if value is not None and value is not False and value != []}
    switches = {name for name, value in said.items() if value is True and getattr(RunConfig, name) is True}
    said |= dict.fromkeys(switches, False)  # the flag of an option that is on by default turns it off
    for name in ("budget", "spend"):
        if limits := said.get(name):
            said[name] = assignments(limits, flag(name), entry(name, *_EXAMPLES[name]), raw=True)
    if ratios := said.get("ratios"):
        said["ratios"] = layer_ratios(ratios, flag("ratios"))
    if settings := said.get("settings"):
        said["settings"] = assignments(settings, flag("settings"), entry("settings", "learning_rate", 0.01))
    if arguments := said.get("model_args"):
        said["model_args"] = model_arguments(arguments)
    return said
