"""The modules of a program as JSON, and back.

torch      a layer of torch.nn: class and arguments (`fxsurgery.saving.described`)
tree       a container, or a gate or switch of ours: its attributes here, what is registered with it in the list
depth      stochastic depth, of whichever library
opaque     a module of the user's, which is not written: loading takes it from the user's model
same       another name of a module before
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxsurgery.elastic.kernels import ElasticConv, ElasticConv1d, ElasticConv2d, ElasticConv3d, KernelMatrices
from fxsurgery.elastic.switches import BlockSwitch, UnitMask
from fxsurgery.errors import RunError, SavingError
from fxsurgery.gates import GateApply, GateVector
from fxsurgery.saving.described import CLASSES, PLAIN_TREES, Described, Parametrised, describe
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
        return {"kind": "opaque", "class": f"{kind.__module__}.{kind.__qualname__}", "reason": str(error)}


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


def build(spec: Spec, original: nn.Module | None) -> nn.Module:
    """The module of a spec, tensors aside.

    Raises:
        RunError: the spec is damaged, or wants a module of `original` that is not there.
        SavingError: torch does not make such a module.
    """
    match spec["kind"]:
        case "tree":
            return _tree(spec)
        case "depth":
            return StochasticDepth(float(spec["p"]), str(spec["mode"]))
        case "opaque":
            return _opaque(spec, original)
        case "torch":
            return _torchs(spec)
        case other:
            raise RunError(f"damaged: no module is of kind {other!r}")


def _tree(spec: Spec) -> nn.Module:
    if spec["class"] not in OWN:
        raise RunError(f"damaged: {spec['class']!r} is no container")
    kind, attributes = OWN[spec["class"]]
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name in attributes:
        setattr(module, name, decoded(spec["attributes"][name]))
    return module


def _torchs(spec: Spec) -> nn.Module:
    if spec["class"] not in CLASSES:
        raise RunError(f"damaged: {spec['class']!r} is no module of torch.nn")
    norms = [
        Parametrised(function, tensor, {name: decoded(value) for name, value in options.items()})
        for function, tensor, options in spec.get("norms", ())
    ]
    arguments = {name: decoded(value) for name, value in spec["arguments"].items()}
    module = Described(spec["class"], arguments, tuple(norms)).build()
    if "elastic" in spec:
        return ELASTIC[f"Elastic{spec['class']}"].of(module, decoded(spec["elastic"]))  # type: ignore[arg-type]
    return module


def _opaque(spec: Spec, original: nn.Module | None) -> nn.Module:
    if original is None:
        raise RunError(f"`{spec['path']}` is a {spec['class']} of the model, which was kept whole")
    try:
        found = original.get_submodule(spec["path"])
    except AttributeError as error:
        raise RunError(f"the model given has no `{spec['path']}`, where a {spec['class']} is wanted") from error
    kind = type(found)
    if (
        kind.__qualname__ != spec["class"].rpartition(".")[2]
        and f"{kind.__module__}.{kind.__qualname__}" != spec["class"]
    ):
        raise RunError(f"the model given has a {kind.__qualname__} at `{spec['path']}`; a {spec['class']} is wanted")
    return copy.deepcopy(found).eval()
