"""Everything that `fxsurgery optimize` can be told, as one checked value."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from fxsurgery.budget import Budget, Spend
from fxsurgery.config.parsers import amount, shapes
from fxsurgery.searchers.methods import METHODS
from fxsurgery.training import MixedPrecision


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"no method is named {name!r}; there are: {', '.join(METHODS)}")
    return name


Limit = Annotated[int | float, BeforeValidator(amount), Field(gt=0, lt=10**18)]
Count = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Shapes = Annotated[tuple[tuple[Count, ...], ...], BeforeValidator(shapes)]


class RunConfig(BaseModel):
    """A run of `fxsurgery optimize`: the keys of its file, and its flags."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(description="module:factory, file.py:factory, or the directory of a saved result or a run")
    model_args: dict[str, Any] = Field({}, description="what the factory is called with, by name")
    weights: Path | None = Field(None, description="state dict to load into the model: .safetensors or .pt")
    original: str | None = Field(None, description="your model, where MODEL is a saved one that kept parts of it whole")
    trained: bool = Field(default=True, description="whether the weights are trained; if not, they are trained first")
    example_shape: Shapes = Field((), description="shapes of the inputs without their batch, e.g. 3,224,224")
    example_inputs: str | None = Field(
        None, description="inputs where a shape does not tell, e.g. token ids: module:name, or a file"
    )
    leaf_modules: tuple[str, ...] = Field((), description="class of modules to keep whole; once for each class")

    train_data: str | None = Field(None, description="what to train on")
    val_data: str | None = Field(None, description="what everything is selected on")
    test_data: str | None = Field(None, description="what the result is tested on, once")
    batch_size: Count = Field(64, description="for data that are no DataLoader")
    loss: str | None = Field(None, description="loss(output, target); cross-entropy unless said")
    metric: str | None = Field(None, description="metric(output, target); accuracy or the loss unless said")

    method: Annotated[str, AfterValidator(_known)] | None = Field(None, description="how to search; dnal unless said")
    budget: dict[Literal["params", "macs", "latency_ms"], Limit] = Field(
        {}, description="what the result may take at most; for dnal and prune half the MACs unless said"
    )
    spend: dict[Literal["epochs", "seconds"], Limit] = Field(
        {}, description="what the search of ectonas may spend at most"
    )
    target: str = Field("local", description="where a budget of latency_ms is measured: local or cuda")
    settings: dict[str, Any] = Field({}, description="the method's own settings")

    device: str | None = Field(None, description="where to train: cpu or cuda; the GPU where there is one, unless said")
    seed: Seed = Field(0, description="of everything random")
    mixed_precision: MixedPrecision | None = Field(None, description="number format of the training")
    accumulate: Count = Field(1, description="batches per optimiser step")
    executor: Literal["in-process", "processes", "ray"] | None = Field(
        None, description="where ectonas trains its candidates; one by one in-process unless said"
    )
    workers: Count | None = Field(None, description="of processes or ray: how many train at a time")

    run_dir: Path | None = Field(None, description="keep the run here as it goes; a killed run can go on from it")
    resume: bool = Field(default=False, description="go on with the run there; begin it where there is none")
    out: Path | None = Field(None, description="save the result here, for the other commands")
    standalone: Path | None = Field(None, description="save code and weights here that need torch alone")
    onnx: Path | None = Field(None, description="export to this ONNX file, checked against PyTorch")
    report: Path | None = Field(None, description="write an HTML page about it")

    @field_validator("spend", mode="before")
    @classmethod
    def _nothing_to_be_a_share_of(cls, given: object) -> object:
        if isinstance(given, Mapping) and (names := [n for n, v in given.items() if str(v).strip().endswith("%")]):
            raise ValueError(f"{names[0]} is an amount, never a share")
        return given

    def to_spend(self) -> Spend | None:
        """What may be spent; `None` where nothing is said."""
        return Spend(**self.spend) if self.spend else None

    def to_budget(self) -> Budget | None:
        """The budget; `None` where none is given."""
        return Budget(**self.budget) if self.budget else None
