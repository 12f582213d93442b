"""Which models cannot be taken as a graph, told before anything is tried."""

import copy
import keyword
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxsurgery.errors import CaptureError, first_line
from fxsurgery.option_text import shown

QUANTIZED = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized", "torch.nn.quantized",
    "torch.nn.intrinsic.quantized", "torchao.", "bitsandbytes.",
)  # fmt: skip
"""Where the modules and tensors come from that hold quantized numbers."""

PARALLEL = {
    "DataParallel": "its `.module`",
    "DistributedDataParallel": "its `.module`",
    "FullyShardedDataParallel": "the module as it was before it was sharded",
    "FSDPModule": "the module as it was before fully_shard",
}
"""Wrappers by the name of their class, and what to use in their place."""


def require_takeable(model: object) -> None:
    """Refuse what is known to fail, and say what to do instead.

    Raises:
        CaptureError: it is exported, compiled, scripted, wrapped, quantized, pruned by masks, lazy, without numbers,
            not to be copied, or has a name that no graph can hold.
    """
    if type(model).__name__ == "ExportedProgram":
        raise CaptureError("the model is a torch.export.ExportedProgram, which is no module: pass its .module()")
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture: model={shown(model)}: it must be a torch.nn.Module")
    if type(model).__name__ == "OptimizedModule":
        raise CaptureError("the model comes from torch.compile: pass the module that was compiled")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "the model is a torch.jit.ScriptModule, whose code cannot be traced: use the Python module that was "
            "scripted"
        )
    if "forward" in vars(model):
        raise CaptureError("the model's `forward` was replaced on the object: pass the unwrapped model")
    _require_numbers(model)
    for path, module in model.named_modules():
        if trouble := next((found for refuse in _REFUSALS if (found := refuse(path, module))), ""):
            raise CaptureError(trouble)
    _require_names(model)


def is_exported(model: nn.Module) -> bool:
    """Whether some part comes from `torch.export`, whose graphs hold for the sizes that they were told."""
    return any(type(module).__mro__[1].__module__.startswith("torch.export") for module in model.modules())


def uncopiable(model: nn.Module) -> str:
    """What of `model` cannot be copied, in words; empty where each part can."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in {"_modules", "_parameters", "_buffers"}:
                continue
            try:
                copy.deepcopy(value)
            except Exception as error:  # noqa: BLE001 -- whatever the user's object raises is what is looked for
                return _uncopied(f"{path}.{name}" if path else name, value, error)
    return ""


def _uncopied(name: str, value: object, error: Exception) -> str:
    if isinstance(value, Tensor):
        return f"`{name}` is a tensor that was computed with gradients: keep it as .detach(), or work it out in forward"
    reason = first_line(error)
    return f"`{name}` is a {type(value).__name__} ({reason}): take it off the model, or make it in forward"


def _require_numbers(model: nn.Module) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    if any(map(is_lazy, (tensor for _, tensor in named))):
        raise CaptureError("the model has lazy parameters, which have no shape yet: call model(x) on one batch first")
    if empty := next((name for name, tensor in named if tensor.is_meta), ""):
        raise CaptureError(
            f"the model has tensors on the meta device (`{empty}`), which hold no numbers: load its weights first"
        )
    if sparse := next((name for name, tensor in named if tensor.layout is not torch.strided), ""):
        raise CaptureError(
            f"the model holds the sparse tensor `{sparse}`, which cannot be copied and compared: keep it dense "
            "with .to_dense()"
        )


def _require_names(model: nn.Module) -> None:
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())]
    if odd := [name for name in names if not name.isprintable() or not {'"', "\\"}.isdisjoint(name)]:
        raise CaptureError(f"a graph cannot hold the name {odd[0]!r}: call it something without quotes and backslashes")
    if odd := [name for name in names if any(map(keyword.iskeyword, name.split(".")))]:
        raise CaptureError(f"a graph cannot hold the name {odd[0]!r}: call it something that is no keyword of Python")
    own = {name.partition(".")[0] for name in (*dict(model.named_children()), *model.state_dict())}
    if taken := sorted(own & {"code", "graph"}):
        raise CaptureError(
            f"the model has a module or tensor called `{taken[0]}`, a name that torch.fx.GraphModule keeps for "
            "itself: call it something else"
        )


def _named(path: str) -> str:
    return f"`{path}`" if path else "the model"


def _compiled(path: str, module: nn.Module) -> str:
    """Of a part from torch.compile, or of one whose forward was compiled."""
    if type(module).__name__ == "OptimizedModule":
        return f"`{path}` comes from torch.compile: use the module that was compiled, `{path}._orig_mod`"
    if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
        return f"the forward of `{path}` comes from torch.compile: keep the plain forward, and compile the result"
    return ""


def _parallel(path: str, module: nn.Module) -> str:
    kind = next((k.__name__ for k in type(module).__mro__ if k.__name__ in PARALLEL and _is_torchs(k)), "")
    return f"{_named(path)} is wrapped in {kind}: use {PARALLEL[kind]}" if kind else ""


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _quantized(path: str, module: nn.Module) -> str:
    """Of a module whose weights are quantized numbers."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    kinds = [type(module), *(type(t) for t in own), *(type(t.data) for t in own)]
    found = any(f"{k.__module__}.".startswith(QUANTIZED) for k in kinds) or any(t.is_quantized for t in own)
    if not found:
        return ""
    return (
        f"{_named(path)} ({type(module).__name__}) is quantized, and its weights cannot be cut: pass the model as it "
        "was before it was quantized, and quantize the result"
    )


def _masked(path: str, module: nn.Module) -> str:
    """Of a module with masks of torch.nn.utils.prune."""
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001 -- nothing else tells
    names = [hook._tensor_name for hook in hooks if isinstance(hook, BasePruningMethod)]  # noqa: SLF001
    if not names:
        return ""
    owner = f"model.get_submodule({path!r})" if path else "model"
    return (
        f"{_named(path)} is under a mask of torch.nn.utils.prune, which works `{names[0]}` out before each forward: "
        f"make it permanent with torch.nn.utils.prune.remove({owner}, {names[0]!r})"
    )


def _normed(path: str, module: nn.Module) -> str:
    """Of a module with a hook that keeps a weight which cannot be copied."""
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 -- nothing else tells
        if isinstance(hook, (WeightNorm, SpectralNorm)) and not getattr(module, hook.name).is_leaf:
            kind = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
            return (
                f"{_named(path)} is under torch.nn.utils.{kind}, whose weights cannot be copied: use "
                f"torch.nn.utils.parametrizations.{kind}, or take it off with torch.nn.utils.remove_{kind}"
            )
    return ""


_REFUSALS: tuple[Callable[[str, nn.Module], str], ...] = (_compiled, _parallel, _quantized, _masked, _normed)
"""Each gives what is wrong with a module, at its path, and what to do; empty where nothing is."""
