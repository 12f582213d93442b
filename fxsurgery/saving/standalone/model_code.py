"""Source code of `model.py`."""

import builtins
import keyword
import re

import torch
from torch import Tensor

from fxsurgery.program import Program
from fxsurgery.saving.standalone.chains import chains
from fxsurgery.saving.standalone.forward import Forward
from fxsurgery.saving.standalone.literals import to_code
from fxsurgery.saving.standalone.signature import (
    ForwardArgument,
    arguments_of,
    example_code,
    free_names,
    header,
    renamings,
)
from fxsurgery.saving.standalone.tree import Tree
from fxsurgery.saving.standalone.wrapping import wrapped

PARAMETRIZATIONS = ("spectral_norm", "weight_norm")

GLOBALS = {
    *dir(builtins), "Any", "F", "Group", "OrderedDict", "Path", "StochasticDepth", "Tensor", "_TYPES", "json", "load",
    "math", "model", "nn", "operator", "output", "read_tensors", "torch",
}  # fmt: skip
"""Names that the generated file uses, or may use, at module level."""

READER = '''
_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by name."""
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        dtype, (begin, end) = _TYPES[entry["dtype"]], entry["data_offsets"]
        data = bytearray(content[start + begin : start + end])
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensors[name] = flat.clone().reshape(entry["shape"])
    for name in json.loads(metadata.get("layouts", "{}")):
        form = torch.channels_last if tensors[name].dim() == 4 else torch.channels_last_3d
        tensors[name] = tensors[name].contiguous(memory_format=form)
    return tensors
'''

LOAD = '''
def load(folder: str | Path = Path(__file__).parent) -> {name}:
    """Return the model with its weights, in eval mode."""
    model = {name}()
    own = dict(model.named_parameters(remove_duplicate=False))
    own |= dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in read_tensors(Path(folder) / "weights.safetensors").items():
        if own[name].shape != tensor.shape:
            raise ValueError(f"{{name}} is {{tuple(tensor.shape)}} in weights.safetensors")
        own[name].data = tensor
    return model.eval()
'''

GROUP = '''
class Group(nn.Module):
    """A container of named modules, parameters and buffers."""

    def __init__(self, /, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, (nn.Module, nn.Parameter)):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
'''

DEPTH = '''
class StochasticDepth(nn.Module):
    """Randomly drop the input in train mode, per sample or for the whole batch."""

    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        size = [x.shape[0] if self.mode == "row" else 1] + [1] * (x.dim() - 1)
        kept = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - self.p)
        return x * kept.div_(1.0 - self.p) if self.p < 1.0 else x * kept
'''


def source(program: Program) -> str:
    """Return the source code of `model.py`.

    Raises:
        SavingError: a module or value cannot be written as code; the message names it.
    """
    sequences = chains(program)
    tree = Tree(program, sequences)
    body = [line for statement in tree.statements() for line in wrapped(statement, 8)]
    arguments = arguments_of(program)
    forward = Forward(program, tree, sequences, arguments)
    steps = [*(f"        {line}" for line in renamings(arguments)), *_forward(forward)]
    name = class_name(program.name, tree.helpers)
    parts = [
        _top(program, name, tree, forward, arguments, "\n".join(steps)),
        *(text for helper, text in (("Group", GROUP), ("StochasticDepth", DEPTH)) if helper in tree.helpers),
        _class(
            f"{name}({tree.base})", body, wrapped(header(arguments, returns_tensor=forward.returns_tensor()), 4), steps
        ),
        LOAD.format(name=name),
        READER,
        _main(arguments, GLOBALS | tree.helpers | {name}),
    ]
    return "\n\n".join(part.strip("\n") + "\n" for part in parts)


def class_name(original_name: str, helpers: set[str]) -> str:
    """Return a valid class name based on the name of the user's model."""
    name = re.sub(r"\W", "_", original_name, flags=re.ASCII)
    usable = name.isidentifier() and not keyword.iskeyword(name)
    taken = GLOBALS | helpers
    return name if usable and name not in taken and not name.startswith("__") else f"Model{name if usable else ''}"


def _top(  # noqa: PLR0917 -- all that is imported for
    program: Program, name: str, tree: Tree, forward: Forward, arguments: list[ForwardArgument], text: str
) -> str:
    plain = ["import json"]
    plain += [f"import {module}" for module in ("math", "operator") if module in forward.uses]
    if "OrderedDict" in tree.helpers:
        plain.append("from collections import OrderedDict")
    plain.append("from pathlib import Path")
    if any(a.is_renamed for a in arguments):
        plain.append("from typing import Any")
    torchs = ["import torch", "from torch import Tensor, nn"]
    if re.search(r"\bF\.", text):
        torchs.append("from torch.nn import functional as F")
    norms = [norm for norm in PARAMETRIZATIONS if norm in tree.helpers]
    if norms:
        torchs.append(f"from torch.nn.utils.parametrizations import {', '.join(norms)}")
    passes = len(program.log)
    made = f", after {passes} step{'s' if passes > 1 else ''} of surgery" if passes else ""
    words = (
        f'"""{name}{made}, in plain PyTorch.\n\n'
        "`load()` returns it in eval mode, with the weights from weights.safetensors next to this file.\n"
        '"""'
    )
    return "\n".join([words, "", *plain, "", *torchs])


def _class(name: str, body: list[str], head: list[str], steps: list[str]) -> str:
    return "\n".join(
        [
            f"class {name}:",
            "    def __init__(self) -> None:",
            *body,
            "",
            *head,
            *steps,
        ]
    )


def _forward(forward: Forward) -> list[str]:
    lines, section = list[str](), ""
    for statement in forward.statements():
        if statement.section != section:
            section = statement.section
            lines += [""] * bool(lines) + ([f"        # {section}"] if section else [])
        lines += wrapped(statement.code, 8)
    return lines


def _main(arguments: list[ForwardArgument], taken: set[str]) -> str:
    lines = ['if __name__ == "__main__":', "    model = load()"]
    passed, variables = list[str](), free_names([a.name for a in arguments], taken)
    for argument in arguments:
        value = example_code(argument.value).text
        if isinstance(argument.value, Tensor) or len(value) > 20:
            variable = variables[argument.name]
            lines += wrapped(f"{variable} = {value}", 4)
            value = variable
        passed.append(_passed(argument, value))
    lines += ["    with torch.no_grad():"]
    lines += wrapped(f"output = model({', '.join(passed)})", 8)
    lines += ["    print(output.shape if isinstance(output, Tensor) else output)"]
    return "\n".join(lines)


def _passed(argument: ForwardArgument, value: str) -> str:
    if not argument.by_keyword:
        return value
    name = argument.user_name
    plain = name.isidentifier() and not keyword.iskeyword(name)
    return f"{name}={value}" if plain else f"**{{{to_code(name).text}: {value}}}"


def requirements() -> str:
    """Return the requirements of the file, with the torch version that it was verified with."""
    return f"torch  # {torch.__version__.partition('+')[0]} when this was written\n"
