"""`fxsurgery optimize`: its flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fxsurgery.cli.errors import ending, give, in_flags, say
from fxsurgery.cli.options import (
    AsJson,
    ExampleInputs,
    ExampleShape,
    LeafModules,
    ModelArgs,
    Original,
    Weights,
    key,
    option,
)
from fxsurgery.cli.run import Done, as_plain, dry, run
from fxsurgery.cli.sources import model_arguments
from fxsurgery.config import RunConfig, assignments, effective, read
from fxsurgery.searchers.methods import METHODS

DATA, GOAL, TRAINING, KEEPING = "Data", "What to make", "Training", "What to keep"
_MODEL = "[cyan]module:factory[/cyan], [cyan]file.py:factory[/cyan] or a saved directory; or the config file says it."
_CONFIG = "A .toml or .json file of all that flags can say; flags go before it."
_DRY = "Show what can be reached, what would be done and for how long; train nothing."
_PRINT = "Print the config that file and flags come to, with every setting, as JSON for --config; do nothing."
_SET = "A setting of the method, e.g. learning_rate=0.01; --print-config shows them all."
_BUDGET = "AMOUNT of params, macs or latency_ms; for dnal and prune half the MACs unless said."
_SPEND = "AMOUNT of epochs or seconds that ectonas may spend: epochs=300, over all candidates."


def optimize(  # noqa: PLR0913 -- what can be said, each by a flag
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL)] = None,
    *,
    config: Annotated[Path | None, option(None, "FILE", _CONFIG, "--config", "-c")] = None,
    model_args: ModelArgs = None,
    weights: Weights = None,
    original: Original = None,
    example_shape: ExampleShape = None,
    example_inputs: ExampleInputs = None,
    leaf_modules: LeafModules = None,
    train_data: Annotated[str | None, key("train_data", DATA, "DATA")] = None,
    val_data: Annotated[str | None, key("val_data", DATA, "DATA")] = None,
    test_data: Annotated[str | None, key("test_data", DATA, "DATA")] = None,
    batch_size: Annotated[int | None, key("batch_size", DATA, "N")] = None,
    loss: Annotated[str | None, key("loss", DATA, "MODULE:NAME")] = None,
    metric: Annotated[str | None, key("metric", DATA, "MODULE:NAME")] = None,
    budget: Annotated[list[str] | None, option(GOAL, "NAME=AMOUNT", _BUDGET, "--budget", "-b")] = None,
    spend: Annotated[list[str] | None, option(GOAL, "NAME=AMOUNT", _SPEND, "--spend")] = None,
    target: Annotated[str | None, key("target", GOAL, "TARGET")] = None,
    method: Annotated[str | None, key("method", GOAL, "|".join(METHODS), "--method", "-m")] = None,
    settings: Annotated[list[str] | None, option(GOAL, "NAME=VALUE", _SET, "--set", "-s")] = None,
    not_trained: Annotated[
        bool, option(TRAINING, "", "The weights are not trained: train them first.", "--not-trained")
    ] = False,
    device: Annotated[str | None, key("device", TRAINING, "DEVICE")] = None,
    seed: Annotated[int | None, key("seed", TRAINING, "N")] = None,
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"] | None, key("mixed_precision", TRAINING)] = None,
    accumulate: Annotated[int | None, key("accumulate", TRAINING, "N")] = None,
    executor: Annotated[Literal["in-process", "processes", "ray"] | None, key("executor", TRAINING)] = None,
    workers: Annotated[int | None, key("workers", TRAINING, "N")] = None,
    run_dir: Annotated[Path | None, key("run_dir", KEEPING, "DIR")] = None,
    resume: Annotated[bool, key("resume", KEEPING, "", "--resume")] = False,
    out: Annotated[Path | None, key("out", KEEPING, "DIR", "--out", "-o")] = None,
    standalone: Annotated[Path | None, key("standalone", KEEPING, "DIR")] = None,
    onnx: Annotated[Path | None, key("onnx", KEEPING, "FILE")] = None,
    report: Annotated[Path | None, key("report", KEEPING, "FILE")] = None,
    dry_run: Annotated[bool, option(None, "", _DRY, "--dry-run", "-n")] = False,
    print_config: Annotated[bool, option(None, "", _PRINT, "--print-config")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, option(None, "", "No progress, only the end.", "--quiet", "-q")] = False,
) -> None:
    r"""Make a model smaller: search what can go within the budget, cut it, fine-tune.

    Or let it evolve: ectonas lets it grow where that pays, and shrink elsewhere.

    Ask for --dry-run first: it says what can be reached, and how long it takes.
    Without data it works on inputs made of the model, and learns from the
    model's own outputs; fine-tune such a result on your data.

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
    macs=50%. Anything larger is absolute: params=1.2M, latency_ms=2.5.

    [bold]The config file[/bold] has the same names with _ for -, and tables \[budget],
    \[spend], \[settings] and \[model_args]. Flags go before it: --budget and --spend
    replace their tables, --set and --model-args change single entries.
    """
    asked = dict(locals())
    with ending(as_json=as_json):
        checked, of_method = read(config, _said(asked))
        if print_config:
            shown: object = effective(checked, of_method)
        elif dry_run:
            shown = dry(checked, of_method)
        else:
            shown = run(checked, of_method, verbose=not quiet)
    give(as_plain(shown) if as_json else shown, as_json=as_json or print_config)
    if isinstance(shown, Done) and shown.kept.failures:
        for failure in shown.kept.failures:
            say(f"error: {in_flags(failure)}", "red", by_all=True)
        raise typer.Exit(1)


def _said(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags say, by the keys of the config."""
    given = {name: value for name, value in asked.items() if name in RunConfig.model_fields}
    said = {name: value for name, value in given.items() if value is not None and value is not False and value != []}
    if asked["not_trained"]:
        said["trained"] = False
    for name in ("budget", "spend"):
        if limits := said.get(name):
            said[name] = assignments(limits, f"--{name}", raw=True)
    if settings := said.get("settings"):
        said["settings"] = assignments(settings, "--set")
    if arguments := said.get("model_args"):
        said["model_args"] = model_arguments(arguments)
    return said
