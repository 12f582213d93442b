"""The identity of a run: hashes of models, and settings as plain JSON, equal in every process.

A function is identified by its name, the values that it holds, and its code, unless torch or this library defines it:
their versions are recorded elsewhere. An object is identified by its class and its public attributes.
"""

import functools
import hashlib
import json
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxsurgery.program import Program
from fxsurgery.tensor_state import digest as tensor_digest
from fxsurgery.training.snapshot import tensors_of

DEEPEST = 6
"""Number of nested levels of objects that are described."""
LONGEST = 100
"""A list or dict of more is represented by its hash."""
_VERSIONED = {"torch", "fxsurgery", "builtins", "operator", "math"}


def fingerprint(program: Program) -> dict[str, str]:
    """Return hashes of a program's graph, weights and example inputs, by these names."""
    weights, examples = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(tensors_of(program.graph_module).items()):
        weights.update(name.encode())
        weights.update(_bytes(tensor))
    for tensor in program.examples.tensors:
        examples.update(_bytes(tensor))
    digests = {"graph": hashlib.sha256(program.text().encode()), "weights": weights, "example_inputs": examples}
    return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def weights_fingerprint(module: nn.Module) -> str:
    """Return a hash of a module's class, layers and weights."""
    layers = ((name, type(child).__qualname__) for name, child in module.named_modules())
    digest = hashlib.sha256(repr(list(layers)).encode())
    for name, tensor in sorted(tensors_of(module).items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def structural_hash(program: Program) -> str:
    """Return a hash of what a program computes, equal for two that differ only in names of nodes and modules.

    Modules outside torch also count by name: their state beside tensors is not compared.
    """
    digest = hashlib.sha256()
    numbers = {node: number for number, node in enumerate(program.nodes)}
    calls = dict[str, int]()
    for node, number in numbers.items():
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        digest.update(f"{node.op} {arguments}".encode())
        if node.op == "call_module":
            first = calls.setdefault(str(node.target), number)
            module = program.module(node)
            named = "" if type(module).__module__.startswith("torch.") else node.target
            digest.update(f"{first} {named} {module!r}".encode())
            for tensor in (*module.parameters(), *module.buffers()):
                digest.update(tensor_digest(tensor).encode())
        elif node.op == "get_attr":
            held = program.attribute(str(node.target))
            digest.update((tensor_digest(held) if isinstance(held, Tensor) else repr(held)).encode())
        elif node.op != "placeholder":
            digest.update(str(getattr(node.target, "__qualname__", node.target)).encode())
    return digest.hexdigest()[:16]


def to_plain(value: object) -> Any:  # noqa: ANN401
    """Return a setting as plain JSON, equal for settings that have the same effect and different otherwise.

    Args:
        value: a number, string, function or object, or a tuple, list or dict of them.
    """
    return _to_plain(value, ())


def _to_plain(value: object, around: tuple[int, ...]) -> Any:  # noqa: ANN401
    """Return the plain form of `value`; `around` has the ids of the objects that hold it."""
    inside = (*around, id(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, tuple | list):
        return _shortened([_to_plain(v, inside) for v in value])
    if isinstance(value, Mapping):
        return _shortened({str(k): _to_plain(v, inside) for k, v in value.items()})
    if isinstance(value, Tensor | np.ndarray):
        return hashlib.sha256(_bytes(torch.as_tensor(value))).hexdigest()
    held = [] if id(value) in around or len(around) > DEEPEST else list(_held(value))
    return [_name(value), *(_to_plain(v, inside) for v in held)] if held else _name(value)


def _shortened(items: Any) -> Any:  # noqa: ANN401 -- a list or a dict
    return items if len(items) <= LONGEST else hashlib.sha256(json.dumps(items).encode()).hexdigest()


def _name(value: object) -> str:
    kind = value if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _held(value: object) -> Iterator[object]:
    """Yield what distinguishes a function or object from others of its name."""
    if isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.FunctionType):
        if value.__module__.partition(".")[0] not in _VERSIONED:
            yield _code(value.__code__)
        held = (value.__defaults__, value.__kwdefaults__, _cells(value))
        yield from (part for part in held if part)
    elif not isinstance(value, type):
        public = {k: v for k, v in getattr(value, "__dict__", {}).items() if k[0] != "_" and k != "training"}
        if isinstance(value, nn.Module):
            public.update(**dict(value.named_children()), **dict(value.named_parameters(recurse=False)))
            public.update(value.named_buffers(recurse=False))
        if public:
            yield public


def _cells(function: types.FunctionType) -> list[object]:
    """Return the contents of a function's closure, except the function itself."""
    contents = list[object]()
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            continue
    return [part for part in contents if part is not function]


def _code(code: types.CodeType) -> str:
    """Return a hash of the code of a function, independent of its file and line."""
    digest = hashlib.sha256(code.co_code)
    for part in (*code.co_names, *code.co_consts):
        # The order of a set differs between processes.
        plain = sorted(map(repr, part)) if isinstance(part, frozenset) else part
        digest.update((_code(part) if isinstance(part, types.CodeType) else repr(plain)).encode())
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tensor.dtype}{tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()
