"""Conversion of the modules of a program to JSON and back.

torch      a layer of torch.nn: class and arguments (`fxsurgery.saving.constructors`)
tree       a container, gate or switch: attributes in its entry, children in entries of their own
depth      stochastic depth of any library
opaque     a module of the user's model, which is not saved: loading takes it from that model
same       another name of a module in an earlier entry
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fxsurgery.analysis.refit import size_attributes
from fxsurgery.argument_names import keyword, named
from fxsurgery.errors import RunError, SavingError
from fxsurgery.nn.elastic.kernels import ElasticConv, ElasticConv1d, ElasticConv2d, ElasticConv3d, KernelMatrices
from fxsurgery.nn.elastic.switches import BlockSwitch, UnitMask
from fxsurgery.nn.gates import GateApply, GateVector, Mode
from fxsurgery.saving.constructors import (
    CLASSES,
    PLAIN_TREES,
    ConstructorCall,
    Parametrization,
    constructor_call,
    parameters_of,
)
from fxsurgery.saving.schema import DepthEntry, ModuleEntry, OpaqueEntry, TorchEntry, TreeEntry, first_fault
from fxsurgery.saving.stochastic_depth import StochasticDepth, depth_of
from fxsurgery.saving.values import decoded, encoded

Spec = dict[str, Any]

TREE_CLASSES: Mapping[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    **{name: (kind, ()) for name, kind in PLAIN_TREES.items()},
    "GateVector": (GateVector, ("mode",)),
    "GateApply": (GateApply, ("dim",)),
    "UnitMask": (UnitMask, ("groups", "dim")),
    "BlockSwitch": (BlockSwitch, ("stage", "position", "options", "is_on")),
    "KernelMatrices": (KernelMatrices, ("conv", "sizes", "size")),
}
"""Tree modules by class name: the class, and the attributes saved besides registered children and tensors."""
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
"""The type of each such attribute."""
ELASTIC: Mapping[str, type[ElasticConv]] = {k.__name__: k for k in (ElasticConv1d, ElasticConv2d, ElasticConv3d)}


def specs(root: nn.Module) -> list[Spec]:
    """Return an entry for every module below `root`, parents before their children."""
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
            return {**_as_spec(constructor_call(module.plain(torch.empty(0, 0)))), "elastic": encoded(module.sizes)}
        return _as_spec(constructor_call(module))
    except SavingError as error:
        kind = type(module)
        spec: Spec = {"kind": "opaque", "class": f"{kind.__module__}.{kind.__qualname__}", "reason": str(error)}
        sizes = {name: encoded(value) for name, value in size_attributes(module).items()}
        return {**spec, "sizes": sizes} if sizes else spec


def _own(module: nn.Module) -> Spec | None:
    kind, attributes = TREE_CLASSES.get(type(module).__name__, (None, ()))
    if type(module) is not kind or _is_hooked(module):
        return None
    values = {name: encoded(getattr(module, name)) for name in attributes}
    return {"kind": "tree", "class": type(module).__name__, "attributes": values}


def _is_hooked(module: nn.Module) -> bool:
    return "forward" in vars(module) or any(v for n, v in vars(module).items() if n.endswith("_hooks"))


def _as_spec(found: ConstructorCall) -> Spec:
    spec: Spec = {
        "kind": "torch",
        "class": found.name,
        "arguments": {name: encoded(value) for name, value in found.arguments.items()},
    }
    if found.norms:
        spec["norms"] = [[n.function, n.tensor, {k: encoded(v) for k, v in n.options.items()}] for n in found.norms]
    return spec


def build(entry: ModuleEntry, original: nn.Module | None, max_layers: int) -> nn.Module:
    """Build the module of an entry, without its tensors.

    Args:
        entry: one entry that `specs` wrote.
        original: the user's model.
        max_layers: upper bound for the number of layers in a module, since each layer has at least one tensor.

    Raises:
        RunError: the entry is damaged, or needs a module of `original` that does not exist.
        SavingError: torch cannot build such a module.
    """
    match entry:
        case TreeEntry():
            return _build_tree(entry)
        case DepthEntry():
            return StochasticDepth(entry.p, entry.mode)
        case OpaqueEntry():
            return _take_opaque(entry, original)
        case TorchEntry():
            return _build_torch_module(entry, max_layers)
        case _:
            raise RunError(f"damaged: `{entry.path}` is an alias of a module that does not exist")


def _build_tree(entry: TreeEntry) -> nn.Module:
    if entry.class_name not in TREE_CLASSES:
        raise RunError(f"damaged: {entry.class_name[:60]!r} is not a container class")
    kind, attributes = TREE_CLASSES[entry.class_name]
    if entry.attributes.keys() != set(attributes):
        names = ", ".join(entry.attributes) or "none"
        raise RunError(f"damaged: `{entry.path}` ({entry.class_name}) has the wrong attributes: {names}")
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name in attributes:
        try:
            value = _ATTRIBUTES[name].validate_python(decoded(entry.attributes[name]))
        except ValidationError as error:
            raise RunError(f"damaged: `{entry.path}.{name}` {first_fault(error)}") from error
        setattr(module, name, value)
    return module


def _build_torch_module(entry: TorchEntry, max_layers: int) -> nn.Module:
    kind = CLASSES.get(entry.class_name)
    if kind is None:
        raise RunError(f"damaged: {entry.class_name[:60]!r} is not a module class of torch.nn")
    arguments = {name: decoded(value) for name, value in entry.arguments.items()}
    if unknown := sorted(arguments.keys() - {p.name for p in parameters_of(kind)}):
        raise RunError(
            f"damaged: `{entry.path}`: torch.nn.{entry.class_name} has no argument {', '.join(unknown)[:60]}"
        )
    layers = [v for n, v in arguments.items() if n.endswith("layers")]
    if any(type(v) is not int or v > max_layers for v in layers):
        raise RunError(f"damaged: `{entry.path}` has {layers[0]} layers, but there are only {max_layers} tensors")
    norms = [
        Parametrization(f, t, {n: decoded(value) for n, value in options.items()}) for f, t, options in entry.norms
    ]
    module = ConstructorCall(entry.class_name, arguments, tuple(norms)).build()
    if entry.elastic is None:
        return module
    if not isinstance(module, _ConvNd) or f"Elastic{entry.class_name}" not in ELASTIC:
        raise RunError(f"damaged: `{entry.path}`: a {entry.class_name} cannot be elastic")
    sizes = decoded(entry.elastic)
    if not is_sizes(sizes) or not all(map(all, sizes)) or {len(size) for size in sizes} != {len(module.kernel_size)}:
        raise RunError(f"damaged: `{entry.path}` has invalid kernel sizes {str(sizes)[:60]}")
    return ELASTIC[f"Elastic{entry.class_name}"].of(module, sizes)


def is_sizes(sizes: object) -> bool:
    """Return True if a value is a tuple of tuples of nonnegative integers."""
    return isinstance(sizes, tuple) and all(
        isinstance(size, tuple) and all(type(s) is int and s >= 0 for s in size) for size in sizes
    )


def _take_opaque(entry: OpaqueEntry, original: nn.Module | None) -> nn.Module:
    if original is None:
        raise RunError(
            f"`{entry.path}` ({entry.class_name}) is a leaf module of your model, which is not saved; pass the "
            f"model as {keyword('original')}"
        )
    found = submodule(original, entry.path)
    if found is None:
        raise RunError(
            f"{named('original')} has no module `{entry.path}`, which must be a {entry.class_name}; pass the model "
            "that was optimized"
        )
    kind = type(found)
    if (
        kind.__qualname__ != entry.class_name.rpartition(".")[2]
        and f"{kind.__module__}.{kind.__qualname__}" != entry.class_name
    ):
        raise RunError(
            f"{named('original')} has a {kind.__qualname__} at `{entry.path}` instead of a {entry.class_name}; pass "
            "the model that was optimized"
        )
    module, sizes = copy.deepcopy(found).eval(), {name: decoded(value) for name, value in entry.sizes.items()}
    if sizes.keys() - size_attributes(module).keys() or not is_sizes(tuple(_as_tuple(v) for v in sizes.values())):
        raise RunError(f"damaged: `{entry.path}` ({entry.class_name}) has invalid sizes {str(sizes)[:60]}")
    for name, value in sizes.items():
        setattr(module, name, value)
    return module


def _as_tuple(value: object) -> object:
    return value if isinstance(value, tuple) else (value,)


def is_tree(module: nn.Module) -> bool:
    """Return True if the children of a module are saved as entries of their own."""
    return type(module) is TREE_CLASSES.get(type(module).__name__, (None,))[0]


def is_reserved(owner: nn.Module, name: str) -> bool:
    """Return True if `name` is an attribute other than a registered one, such as a method."""
    return name in vars(owner) or hasattr(type(owner), name)


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module at `path`, None without one; reads no attributes, since one may be a property."""
    found: nn.Module | None = root
    for part in path.split(".") if path else ():
        found = vars(found)["_modules"].get(part) if found is not None else None
    return found
