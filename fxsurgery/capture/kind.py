"""Which models cannot be taken as a graph, told before anything is tried."""

import keyword
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.weight_norm import WeightNorm

from fxsurgery.errors import CaptureError


def require_takeable(model: nn.Module) -> None:
    """Refuse what is known to fail, and say what to do instead.

    Raises:
        CaptureError: it is compiled, scripted, wrapped, lazy, without numbers, not to be copied, or has a name that no
            graph can hold.
    """
    if type(model).__name__ == "OptimizedModule":
        raise CaptureError("the model comes from torch.compile: pass the module that was compiled")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "the model is a ScriptModule, whose code cannot be traced: use the Python module that was scripted"
        )
    if "forward" in vars(model):
        raise CaptureError("the model's forward was replaced on the object: pass the unwrapped model")
    if any(map(is_lazy, model.parameters())):
        raise CaptureError("the model has lazy parameters, which have no shape yet: run one batch through it")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise CaptureError("the model has tensors on the meta device, which hold no numbers: load its weights first")
    if sparse := [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.layout is not torch.strided]:
        raise CaptureError(
            f"the model holds the sparse tensor `{sparse[0]}`, which cannot be copied and compared: keep it dense "
            "with .to_dense()"
        )
    if path := next(_uncopiable(model), None):
        raise CaptureError(
            f"`{path}` is under torch.nn.utils.weight_norm, whose weights cannot be copied: use "
            "torch.nn.utils.parametrizations.weight_norm, or take it off with torch.nn.utils.remove_weight_norm"
        )
    _require_names(model)


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


def _uncopiable(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]  # noqa: SLF001 -- nothing else tells
        if any(not getattr(module, hook.name).is_leaf for hook in hooks):
            yield path
