"""The modules of a program as JSON, and back.

torch      a layer of torch.nn: class and arguments (`fxsurgery.saving.constructors`)
tree       a container, or a gate or switch of ours: its attributes here, what is registered with it in the list
depth      stochastic depth, of whichever library
opaque     a module of the user's, which is not written: loading takes it from the user's model
same       another name of a module before
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fxsurgery.analysis.refit import size_attributes
from fxsurgery.argument_names import keyword
from fxsurgery.errors import RunError, SavingError
from fxsurgery.nn.elastic.kernels import ElasticConv, ElasticConv1d, ElasticConv2d, ElasticConv3d, KernelMatrices
from fxsurgery.nn.elastic.switches import BlockSwitch, UnitMask
from fxsurgery.nn.gates import GateApply, GateVector, Mode
from fxsurgery.saving.constructors import CLASSES, PLAIN_TREES, Described, Parametrized, describe, parameters_of
from fxsurgery.saving.schema import DepthEntry, ModuleEntry, OpaqueEntry, TorchEntry, TreeEntry, first_fault
from fxsurgery.saving.stochastic_depth import StochasticDepth, depth_of
from fxsurgery.saving.values import decoded, encoded

Spec = dict[str, Any]

OWN: Mapping[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{name: (kind, ()) for name, kind in PLAIN_TREES.items()},
    "GateVector": (GateVector, ("mode",)),
    "GateApply": (GateApply, ("dim",)),
    "UnitMask": (UnitMask, ("groups", "dim")),
    "BlockSwitch": (BlockSwitch, ("stage", "position", "options", "is_on")),
    "KernelMatrices": (KernelMatrices, ("conv", "sizes", "size")),
}
"""Trees: the class, and the attributes that it has beside what is registered."""
_ATTRIBUTES: Mapping[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind, config=ConfigDict(strict=True))
    for name, kind in dict[str, Any](
        mode=Mode,
        dim=int,
        groups=tuple[tuple[str, tuple[int, ...]], ...],
        stage=str,
        position=int,
        options=tuple[int, ...],
        is_on=bool,
        conv=str,
        sizes=tuple[tuple[int, ...], ...],
        size=tuple[int, ...],
    ).items()
}
"""Of each such attribute, its type."""
ELASTIC: Mapping[str, type[ElasticConv]] = {k.__name__: k for k in (ElasticConv1d, ElasticConv2d, ElasticConv3d)}


def specs(root: nn.Module) -> list[Spec]:
    """Every module below `root`, a parent before its children, in order."""
    return list(_specs(root, "", {}))


def _specs(module: nn.Module, path: str, known: dict[int, str]) -> Iterator[Spec]:
    for name, child in module.named_children() if not path else _children(module):
        where = f"{path}.{name}" if path else name
        if id(child) in known:
            yield {"path": where, "kind": "same", "as": known[id(child)]}
            continue
        known[id(child)] = where
        spec = _spec(child)
        yield {"path": where, **spec}
        if spec["kind"] == "tree":
            yield from _specs(child, where, known)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in vars(module)["_modules"].items():
        if child is not None:
            yield name, child


def _spec(module: nn.Module) -> Spec:
    own = _own(module)
    if own is not None:
        return own
    depth = depth_of(module)
    if depth is not None:
        return {"kind": "depth", "p": depth.p, "mode": depth.mode}
    try:
        if isinstance(module, ElasticConv):
            return {**_written(describe(module.plain(torch.empty(0, 0)))), "elastic": encoded(module.sizes)}
        return _written(describe(module))
    except SavingError as error:
        kind = type(module)
        spec: Spec = {"kind": "opaque", "class": f"{kind.__module__}.{kind.__qualname__}", "reason": str(error)}
        sizes = {name: encoded(value) for name, value in size_attributes(module).items()}
        return {**spec, "sizes": sizes} if sizes else spec


def _own(module: nn.Module) -> Spec | None:
    kind, attributes = OWN.get(type(module).__name__, (None, ()))
    if type(module) is not kind or _is_hooked(module):
        return None
    values = {name: encoded(getattr(module, name)) for name in attributes}
    return {"kind": "tree", "class": type(module).__name__, "attributes": values}


def _is_hooked(module: nn.Module) -> bool:
    return "forward" in vars(module) or any(v for n, v in vars(module).items() if n.endswith("_hooks"))


def _written(found: Described) -> Spec:
    spec: Spec = {
        "kind": "torch",
        "class": found.name,
        "arguments": {name: encoded(value) for name, value in found.arguments.items()},
    }
    if found.norms:
        spec["norms"] = [[n.function, n.tensor, {k: encoded(v) for k, v in n.options.items()}] for n in found.norms]
    return spec


def build(entry: ModuleEntry, original: nn.Module | None, most_layers: int) -> nn.Module:
    """The module of an entry, tensors aside.

    Args:
        entry: what `specs` wrote.
        original: the user's model.
        most_layers: how many layers a module may have: each has a tensor at least.

    Raises:
        RunError: the entry is damaged, or wants a module of `original` that is not there.
        SavingError: torch does not make such a module.
    """
    match entry:
        case TreeEntry():
            return _tree(entry)
        case DepthEntry():
            return StochasticDepth(entry.p, entry.mode)
        case OpaqueEntry():
            return _opaque(entry, original)
        case TorchEntry():
            return _torchs(entry, most_layers)
        case _:
            raise RunError(f"damaged: `{entry.path}` is another name of what is not there")


def _tree(entry: TreeEntry) -> nn.Module:
    if entry.class_name not in OWN:
        raise RunError(f"damaged: {entry.class_name[:60]!r} is no container")
    kind, attributes = OWN[entry.class_name]
    if entry.attributes.keys() != set(attributes):
        raise RunError(f"damaged: `{entry.path}`, a {entry.class_name}, has {', '.join(entry.attributes) or 'nothing'}")
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name in attributes:
        try:
            value = _ATTRIBUTES[name].validate_python(decoded(entry.attributes[name]))
        except ValidationError as error:
            raise RunError(f"damaged: `{entry.path}.{name}` {first_fault(error)}") from error
        setattr(module, name, value)
    return module


def _torchs(entry: TorchEntry, most_layers: int) -> nn.Module:
    kind = CLASSES.get(entry.class_name)
    if kind is None:
        raise RunError(f"damaged: {entry.class_name[:60]!r} is no module of torch.nn")
    arguments = {name: decoded(value) for name, value in entry.arguments.items()}
    if odd := sorted(arguments.keys() - {p.name for p in parameters_of(kind)}):
        raise RunError(f"damaged: `{entry.path}`: torch.nn.{entry.class_name} takes no {', '.join(odd)[:60]}")
    layers = [v for n, v in arguments.items() if n.endswith("layers")]
    if any(type(v) is not int or v > most_layers for v in layers):
        raise RunError(f"damaged: `{entry.path}` has {layers[0]} layers, and there are {most_layers} tensors")
    norms = [Parametrized(f, t, {n: decoded(value) for n, value in options.items()}) for f, t, options in entry.norms]
    module = Described(entry.class_name, arguments, tuple(norms)).build()
    if entry.elastic is None:
        return module
    if not isinstance(module, _ConvNd) or f"Elastic{entry.class_name}" not in ELASTIC:
        raise RunError(f"damaged: `{entry.path}`: no {entry.class_name} is elastic")
    sizes = decoded(entry.elastic)
    if not is_sizes(sizes) or not all(map(all, sizes)) or {len(size) for size in sizes} != {len(module.kernel_size)}:
        raise RunError(f"damaged: `{entry.path}` has no kernel sizes {str(sizes)[:60]}")
    return ELASTIC[f"Elastic{entry.class_name}"].of(module, sizes)


def is_sizes(sizes: object) -> bool:
    """Whether a value is a tuple of tuples of sizes."""
    return isinstance(sizes, tuple) and all(
        isinstance(size, tuple) and all(type(s) is int and s >= 0 for s in size) for size in sizes
    )


def _opaque(entry: OpaqueEntry, original: nn.Module | None) -> nn.Module:
    if original is None:
        raise RunError(
            f"`{entry.path}` is a {entry.class_name} of the model, which was kept whole; pass it as "
            f"{keyword('original')}"
        )
    found = submodule(original, entry.path)
    if found is None:
        raise RunError(
            f"the model given has no `{entry.path}`, where a {entry.class_name} is wanted; pass the model that was "
            "optimized"
        )
    kind = type(found)
    if (
        kind.__qualname__ != entry.class_name.rpartition(".")[2]
        and f"{kind.__module__}.{kind.__qualname__}" != entry.class_name
    ):
        raise RunError(
            f"the model given has a {kind.__qualname__} at `{entry.path}`; a {entry.class_name} is wanted; pass the "
            "model that was optimized"
        )
    module, sizes = copy.deepcopy(found).eval(), {name: decoded(value) for name, value in entry.sizes.items()}
    if sizes.keys() - size_attributes(module).keys() or not is_sizes(tuple(_several(v) for v in sizes.values())):
        raise RunError(f"damaged: `{entry.path}`, a {entry.class_name}, has no sizes {str(sizes)[:60]}")
    for name, value in sizes.items():
        setattr(module, name, value)
    return module


def _several(value: object) -> object:
    return value if isinstance(value, tuple) else (value,)


def is_tree(module: nn.Module) -> bool:
    """Whether what is registered with a module is written beside it."""
    return type(module) is OWN.get(type(module).__name__, (None,))[0]


def is_taken(owner: nn.Module, name: str) -> bool:
    """Whether an attribute of that name is something else than what is registered: a method, such as `to_folder`."""
    return name in vars(owner) or hasattr(type(owner), name)


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`; no attribute of a module is read, since one may be a property."""
    found: nn.Module | None = root
    for part in path.split(".") if path else ():
        found = vars(found)["_modules"].get(part) if found is not None else None
    return found
