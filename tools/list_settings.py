"""Write docs/settings.md from the declarations of arguments and settings: `python tools/list_settings.py`."""

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from fxsurgery.config import RunConfig, flag
from fxsurgery.field_docs import docs_of, one_line, own_docs
from fxsurgery.request import Arguments, arguments_of
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"
HEAD = """# Settings

Settings belong to a method. Pass them as an object, or single ones by name:

```python
from fxsurgery import Dnal, Prune, optimize
from fxsurgery.training import adamw

data = {"train_data": train_data, "val_data": val_data, "verbose": False}
optimize(my_model, config=Dnal(align=4, finetune_epochs=5, fewest_steps=0), **data)
optimize(my_model, config=Prune(importance="taylor", rounds=3, optimizer=adamw(1e-3)), **data)
optimize(my_model, method="prune", importance="taylor", rounds=3, **data)
```

Epochs are turned into steps, and `fewest_steps` and `most_steps` bound them: with little data a stage sees it more
often than its epochs say, unless `fewest_steps=0`. An optimizer is made by `fxsurgery.training.sgd(lr, ...)` or
`adamw(lr, ...)`, or is any function from parameters to a `torch.optim.Optimizer`. A setting that appears again in a
method's own table has another default or meaning there.
"""
ARGUMENTS = """## The arguments of `optimize`

The command line and its config file have those with a flag. Where `optimize` takes an object, they take a text that
names it: see [Command line](cli.md).

| argument | flag | default | |
|---|---|---|---|"""


def page() -> str:
    """Return the whole page."""
    rows = dict[str, list[str]]()
    for settings in sections():
        rows.setdefault(_title(settings), []).extend(_rows(settings))
    tables = (
        "\n".join([f"## {title}", "", "| setting | default | |", "|---|---|---|", *those, ""])
        for title, those in rows.items()
    )
    return "\n".join([HEAD, *tables, ARGUMENTS, *arguments(), ""])


def arguments() -> list[str]:
    """Return a row for each argument of `optimize`."""
    defaults, texts = {f.name: f.default for f in fields(Arguments)}, docs_of(Arguments)
    flags = {name: flag(name) for name in arguments_of(RunConfig)}
    return [
        f"| `{name}` | {f'`{flags[name]}`' if name in flags else ''} | "
        f"{'' if default is MISSING else f'`{default!r}`'} | {one_line(texts[name])} |"
        for name, default in sorted(defaults.items(), key=lambda item: item[0] != "model")
    ]


def sections() -> list[type[Settings]]:
    """Return every class of settings, shared ones first; the classes of a single method form one table."""
    lines = [[c for c in reversed(m.settings.__mro__) if is_dataclass(c)] for m in METHODS.values()]
    every = dict.fromkeys(c for line in lines for c in line)
    return sorted(
        every, key=lambda c: (-sum(c in line for line in lines), [c not in line for line in lines], -len(c.__mro__))
    )


def _rows(settings: type[Settings]) -> list[str]:
    defaults = {f.name: f.default for f in fields(settings)}
    return [
        f"| `{name}` | `{defaults[name]!r}` | {text} |" for name, text in texts_of(settings).items() if name in defaults
    ]


def _title(settings: type[Settings]) -> str:
    methods = [m for m in METHODS.values() if issubclass(m.settings, settings)]
    if len(methods) == len(METHODS):
        return "Every method"
    named = " and ".join(f'`method="{method.name}"`' for method in methods)
    return f"{named}: `{methods[0].settings.__name__}`" if len(methods) == 1 else named


def texts_of(settings: type[Settings]) -> dict[str, str]:
    """Return the text of each field that a class defines, or redefines with another default."""
    return {name: one_line(text).replace("|", "\\|") for name, text in own_docs(settings).items()}


if __name__ == "__main__":
    (DOCS / "settings.md").write_text(page(), encoding="utf-8")
