"""The arguments of `fxsurgery optimize`, as keys of a config file and as flags."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import BeforeValidator, ConfigDict

from fxsurgery.config.parsers import flat_ratios, names, shapes
from fxsurgery.field_docs import docs_of, summary
from fxsurgery.option_text import Wording
from fxsurgery.option_types import Count
from fxsurgery.request import Argument, Arguments, PlainArguments, arguments_of

Shapes: TypeAlias = Annotated[
    tuple[tuple[Count, ...], ...], BeforeValidator(shapes), Wording(": write 3,224,224, without the batch")
]
Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(names)]
Ratios: TypeAlias = Annotated[dict[str, float], BeforeValidator(flat_ratios)]
INPUTS, DATA, GOAL, KEEPING = "Model and inputs", "Data", "What to make", "What to keep"


@dataclass(frozen=True, kw_only=True)
class RunConfig(PlainArguments):
    """A run of `fxsurgery optimize`: the keys of its config file, and its flags.

    Arguments that are objects in Python are texts that name the object.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: Annotated[str, Argument(panel=INPUTS, metavar="MODEL", flags=("MODEL",))]
    """module:factory, file.py:factory, or the directory of a saved result or of a run."""
    model_args: Annotated[dict[str, Any], Argument(panel=INPUTS, metavar="NAME=VALUE")] = field(default_factory=dict)
    """Argument of the factory; or all of them as JSON: '{"width": 32}'."""
    weights: Annotated[Path | None, Argument(panel=INPUTS, metavar="FILE")] = None
    """State dict to load into the model: .safetensors or .pt."""
    original: Annotated[str | None, Argument(panel=INPUTS, metavar="MODULE:NAME")] = None
    """Your model, if MODEL is a saved result with leaf modules."""
    example_shape: Annotated[Shapes, Argument(panel=INPUTS, metavar="N,N,N")] = ()
    """Shape of an input without its batch, e.g. 3,224,224; once for each input. Taken from the data, or inferred, by
    default."""
    example_inputs: Annotated[str | None, Argument(panel=INPUTS, metavar="DATA")] = None
    """Inputs that random numbers of a shape cannot replace, e.g. token ids: module:name, or a file."""
    leaf_modules: Annotated[
        tuple[str, ...], Argument(panel=INPUTS, metavar="MODULE:CLASS", flags=("--leaf-module",))
    ] = ()
    """Class of modules to keep as leaves; repeat the option for several."""

    train_data: Annotated[str | None, Argument(panel=DATA, metavar="DATA")] = None
    val_data: Annotated[str | None, Argument(panel=DATA, metavar="DATA")] = None
    test_data: Annotated[str | None, Argument(panel=DATA, metavar="DATA")] = None
    loss: Annotated[str | None, Argument(panel=DATA, metavar="MODULE:NAME")] = None
    metric: Annotated[str | None, Argument(panel=DATA, metavar="NAME")] = None
    """Metric that networks are compared by: accuracy, top5, mse, r2, f1, a torchmetrics class such as
    MulticlassF1Score, or your own as module:name."""

    finetune: Annotated[str | None, Argument(panel="Training", metavar="MODULE:NAME")] = None
    """Function of the model that fine-tunes it, in place of the last fine-tune stage."""
    teacher: Annotated[str | None, Argument(panel="Training", metavar="MODULE:NAME")] = None
    """Trained network to distill from while fine-tuning; or original, the model itself before surgery."""

    keep: Annotated[Names, Argument(panel=GOAL, metavar="LAYER")] = ()
    ratios: Annotated[Ratios, Argument(panel=GOAL, metavar="LAYER=RATIO", flags=("--ratio",))] = field(
        default_factory=dict
    )
    settings: Annotated[dict[str, Any], Argument(panel=GOAL, metavar="NAME=VALUE", flags=("--set", "-s"))] = field(
        default_factory=dict
    )
    """A setting of the method, e.g. learning_rate=0.01; --print-config shows them all."""

    run_dir: Annotated[Path | None, Argument(panel=KEEPING, metavar="DIR")] = None
    loggers: Annotated[tuple[str, ...], Argument(panel=KEEPING, metavar="NAME", flags=("--logger",))] = ()
    """Log to tensorboard, wandb or mlflow, also several; each takes the extra of its name."""
    out: Annotated[Path | None, Argument(panel=KEEPING, metavar="DIR", flags=("--out", "-o"))] = None
    """Save the result here, as input of the other commands."""
    standalone: Annotated[Path | None, Argument(panel=KEEPING, metavar="DIR")] = None
    """Save code and weights here that need only torch."""
    onnx: Annotated[Path | None, Argument(panel=KEEPING, metavar="FILE")] = None
    """Export to this ONNX file, checked against PyTorch."""
    report: Annotated[Path | None, Argument(panel=KEEPING, metavar="FILE")] = None
    """Write an HTML report."""


def flag(name: str) -> str:
    """Return the flag for a key of the config file.

    Example:
        >>> flag("batch_size"), flag("settings"), flag("model")
        ('--batch-size', '--set', 'MODEL')
    """
    declared = arguments_of(RunConfig).get(name)
    return declared.flags[0] if declared is not None and declared.flags else f"--{name.replace('_', '-')}"


def text_of(name: str) -> str:
    """Return the description of a key of the config file, in one paragraph."""
    return summary(docs_of(RunConfig).get(name) or docs_of(Arguments)[name])
