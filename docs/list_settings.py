"""Write settings.md anew, from the fields of each method's settings: `python docs/list_settings.py`."""  # noqa: INP001

import ast
import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path

from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.methods import METHODS

HERE = Path(__file__).parent
HEAD = """# The settings of each method

```python
from fxsurgery import Dnal, Ectonas, Prune, Spend, optimize
from fxsurgery.training import adamw

optimize(model, ..., config=Dnal(align=4, finetune_epochs=5, fewest_steps=0))
optimize(model, ..., config=Prune(importance="taylor", rounds=3, optimizer=adamw(1e-3)))
optimize(model, ..., config=Ectonas(greediness=0.5, places=4), spend=Spend(epochs=300))
optimize(model, ..., method="prune", importance="taylor", rounds=3)  # single settings by name
```

Epochs are turned into steps, and `fewest_steps` and `most_steps` bound them: with little data a stage sees it more
often than its epochs say, unless `fewest_steps=0`. An optimizer is made by `fxsurgery.training.sgd(lr, ...)` or
`adamw(lr, ...)`, or is any function from parameters to a `torch.optim.Optimizer`; the rate follows half a cosine,
whichever it is. The defaults suit conv nets with batch norm. Networks without norms often want `adamw(1e-3)` or a
smaller `learning_rate`, and a regression wants targets of about unit size. A setting that stands in a method's own
table again has another default there.
"""


def page() -> str:
    """The whole text."""
    return "\n".join([HEAD, *(_table(settings) for settings in sections())])


def sections() -> list[type[Settings]]:
    """Every class of settings, those that several methods share first."""
    lines = [[c for c in reversed(m.settings.__mro__) if is_dataclass(c)] for m in METHODS.values()]
    every = dict.fromkeys(c for line in lines for c in line)
    return sorted(every, key=lambda c: -sum(c in line for line in lines))


def _table(settings: type[Settings]) -> str:
    told = told_of(settings)
    defaults = {f.name: f.default for f in fields(settings)}
    rows = [f"| `{name}` | `{defaults[name]!r}` | {text} |" for name, text in told.items()]
    return "\n".join([f"## {_title(settings)}", "", "| setting | default | |", "|---|---|---|", *rows, ""])


def _title(settings: type[Settings]) -> str:
    methods = [m.name for m in METHODS.values() if issubclass(m.settings, settings)]
    if len(methods) == len(METHODS):
        return "Every method"
    named = " and ".join(f'`method="{name}"`' for name in methods)
    return f"{named}: `{settings.__name__}`" if len(methods) == 1 else named


def told_of(settings: type[Settings]) -> dict[str, str]:
    """What stands under each field that the class has itself, or has with another default."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(settings)))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    found = dict[str, str]()
    for field, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            is_told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if is_told else ""
            found[ast.unparse(field.target)] = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return found


if __name__ == "__main__":
    (HERE / "settings.md").write_text(page(), encoding="utf-8")
