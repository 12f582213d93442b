"""Results to report on, made without training, and a reader of the page that knows nothing of how it is made."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import torch
from torch import Tensor, nn

from fxsurgery.capture import capture
from fxsurgery.deploy import LatencyReport
from fxsurgery.deploy.latency_report import Latency
from fxsurgery.passes import LowRank, PruneChannels, RemoveLayer
from fxsurgery.program import Program
from fxsurgery.result import BeforeAfter, Result

HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=alert(1)>"
HOSTILE_MODULE = HOSTILE.replace('"', "")
"""The double quote is left out, which torch.fx cannot take in a module's name."""
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Net(nn.Module):
    """A stem, some blocks that keep their width, and a head; modules under hostile names if asked for."""

    def __init__(self, blocks: int = 2, stem: str = "stem") -> None:
        super().__init__()
        self.stem_name = stem
        self.add_module(stem, nn.Conv2d(3, 16, 3, padding=1))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(blocks))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule(self.stem_name)(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def program(blocks: int = 2, stem: str = "stem") -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(blocks, stem)
    return capture(model.eval(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def operated(original: Program, stem: str = "stem") -> Program:
    """Half of the stem's channels go, the first block with them; the second block becomes two factors."""
    smaller = PruneChannels(((stem, tuple(range(8))),))(original).program
    first = next(node.name for node, _ in smaller.calls(nn.Conv2d) if node.target == "blocks.0.0")
    smaller = RemoveLayer(first)(smaller).program
    return LowRank("blocks.1.0", rank=2)(smaller).program


def history() -> tuple[dict, ...]:
    def record(stage: str, step: int, loss: float, metric: float | None) -> dict:
        return {"stage": stage, "epoch": 0, "step": step, "steps": 20, "loss": loss, "metric": metric, "lr": 0.1 / step,
                "seconds": 0.1 * step}  # fmt: skip

    return tuple(
        record(stage, step, 2.0 / step, step / 20 if step % 10 == 0 else None)
        for stage in ("architecture", "fine-tune")
        for step in range(2, 21, 2)
    )


def result(**options) -> Result:
    original = options.pop("original", None) or program()
    made = {
        "program": options.pop("program", None) or operated(original),
        "original": original,
        "metric_name": "accuracy",
        "metrics": {"val": BeforeAfter(0.9125, 0.9011), "test": BeforeAfter(0.9071, 0.8963)},
        "notes": ("37.5% of the MACs cannot shrink",),
        "history": history(),
        "gates": (0.001, 0.02, 0.5, 0.97, 1.0, 1.0),
        "seed": 7,
        "asked": {"method": "dnal", "budget": {"macs": 0.5}, "model": "Net", "settings": {"align": 8}},
    }
    return Result(**{**made, **options})


def latency() -> LatencyReport:
    def one(name: str, p50_ms: float, ratio: float, size: int) -> Latency:
        return Latency(
            name, p50_ms, 1.2 * p50_ms, 1.5 * p50_ms, 0.9 * p50_ms, 3.0, 2.0, 200, ratio, 0.48, 0.54, size, ""
        )

    models = (one("original", 1.234, 1.0, 54_321), one("result", 0.617, 0.512, 23_456))
    return LatencyReport(models, "a processor", "CPU", "onnxruntime 1", 1, 1, 5, 0, "2026-01-02", contended=False)


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list = field(default_factory=list)

    @property
    def text(self) -> str:
        """Of it and all below it, blanks made one."""
        return " ".join(" ".join(c if isinstance(c, str) else c.text for c in self.children).split())

    def all(self, tag: str, **attributes: str) -> list["Element"]:
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [e for e in self.walk() if e.tag == tag and wanted.items() <= e.attributes.items()]

    def walk(self) -> Iterator["Element"]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag: str, attrs: list) -> None:
        element = Element(tag, {k: v or "" for k, v in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: str) -> Element:
    """The page as a tree; every tag that is opened must be closed."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    [root] = reader.open
    return root


def rows(table: Element) -> dict[str, list[str]]:
    """Cells by row heading."""
    return {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")}
