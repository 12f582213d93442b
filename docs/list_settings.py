"""Write settings.md anew, from the fields of each method's settings: `python docs/list_settings.py`."""  # noqa: INP001

import ast
import inspect
import re
import textwrap
from dataclasses import fields
from pathlib import Path

from fxsurgery.searchers.methods import METHODS
from fxsurgery.searchers.session import Settings

HERE = Path(__file__).parent
HEAD = """# The settings of each method

```python
from fxsurgery import Dnal, Prune, optimize
from fxsurgery.training import adamw

optimize(model, ..., config=Dnal(align=4, finetune_epochs=5, fewest_steps=0))
optimize(model, ..., config=Prune(importance="taylor", rounds=3, optimizer=adamw(1e-3)))
```

Epochs are turned into steps, and `fewest_steps` and `most_steps` bound them: with little data a stage sees it more
often than its epochs say, unless `fewest_steps=0`. An optimizer is made by `fxsurgery.training.sgd(lr, ...)` or
`adamw(lr, ...)`, or is any function from parameters to a `torch.optim.Optimizer`; the rate follows half a cosine,
whichever it is. The defaults suit conv nets with batch norm. Networks without norms often want `adamw(1e-3)` or a
smaller `learning_rate`, and a regression wants targets of about unit size.
"""


def page() -> str:
    """The whole text."""
    shared = tuple(f.name for f in fields(Settings))
    own = (_table(f'`method="{m.name}"`: `{m.settings.__name__}`', m.settings, shared) for m in METHODS.values())
    return "\n".join([HEAD, _table("Every method", Settings, ()), *own])


def _table(title: str, settings: type[Settings], known: tuple[str, ...]) -> str:
    told = _docstrings(settings)
    rows = [f"| `{f.name}` | `{f.default!r}` | {told[f.name]} |" for f in fields(settings) if f.name not in known]
    return "\n".join([f"## {title}", "", "| setting | default | |", "|---|---|---|", *rows, ""])


def _docstrings(settings: type[Settings]) -> dict[str, str]:
    """What stands under each field."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(settings)))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    found = {f.name: "" for f in fields(settings)}
    for field, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(field.target)] = re.sub(r"\s+", " ", str(after.value.value)).replace("|", "\\|")
    return found


if __name__ == "__main__":
    (HERE / "settings.md").write_text(page(), encoding="utf-8")
