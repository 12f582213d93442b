"""Checks for models that are known not to be capturable, made before anything is tried."""

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

QUANTIZED = (
    "torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized", "torch.nn.quantized",
    "torch.nn.intrinsic.quantized", "torchao.", "bitsandbytes.",
)  # fmt: skip
"""Module path prefixes of the classes of quantized modules and tensors."""

PARALLEL = {
    "DataParallel": "its `.module`",
    "DistributedDataParallel": "its `.module`",
    "FullyShardedDataParallel": "the module as it was before it was sharded",
    "FSDPModule": "the module as it was before fully_shard",
}
"""Class names of parallel wrappers, and what to use instead."""


def require_capturable(model: nn.Module) -> None:
    """Raise for a model that is known not to be capturable, with the remedy.

    Raises:
        CaptureError: the model is compiled, scripted, wrapped, quantized, pruned by masks, lazy, on the meta
            device, not copyable, or has a name that generated code cannot contain.
    """
    if type(model).__name__ == "OptimizedModule":
        raise CaptureError("the model comes from torch.compile; pass the module that was compiled")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "the model is a torch.jit.ScriptModule, whose code cannot be traced; pass the Python module that was "
            "scripted"
        )
    if "forward" in vars(model):
        raise CaptureError("the model's `forward` was replaced on the instance; pass the unwrapped model")
    _require_numbers(model)
    for path, module in model.named_modules():
        if problem := next((found for check in _PROBLEMS if (found := check(path, module))), ""):
            raise CaptureError(problem)
    _require_names(model)


def is_exported(model: nn.Module) -> bool:
    """Return True if a submodule comes from `torch.export`, whose graphs hold for the exported sizes only."""
    return any(type(module).__mro__[1].__module__.startswith("torch.export") for module in model.modules())


def uncopiable_attribute(model: nn.Module) -> str:
    """Return a description of the first attribute of `model` that cannot be copied; empty if all can."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in {"_modules", "_parameters", "_buffers"}:
                continue
            try:
                copy.deepcopy(value)
            except Exception as error:  # noqa: BLE001 -- any exception of the user's object is the finding
                return _uncopiable_text(f"{path}.{name}" if path else name, value, error)
    return ""


def _uncopiable_text(name: str, value: object, error: Exception) -> str:
    if isinstance(value, Tensor):
        return f"`{name}` is a tensor with gradient history: store it as .detach(), or compute it in forward"
    reason = first_line(error)
    return f"`{name}` is a {type(value).__name__} ({reason}): remove it from the model, or create it in forward"


def _require_numbers(model: nn.Module) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    if any(map(is_lazy, (tensor for _, tensor in named))):
        raise CaptureError("the model has lazy parameters, which have no shape yet; call model(x) on one batch first")
    if empty := next((name for name, tensor in named if tensor.is_meta), ""):
        raise CaptureError(
            f"the model has tensors on the meta device (`{empty}`), which hold no data; load its weights first"
        )
    if sparse := next((name for name, tensor in named if tensor.layout is not torch.strided), ""):
        raise CaptureError(
            f"the model holds the sparse tensor `{sparse}`, which cannot be copied and compared; make it dense "
            "with .to_dense()"
        )


def _require_names(model: nn.Module) -> None:
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())]
    if invalid := [name for name in names if not name.isprintable() or not {'"', "\\"}.isdisjoint(name)]:
        raise CaptureError(f"a graph cannot contain the name {invalid[0]!r}; rename it without quotes and backslashes")
    if invalid := [name for name in names if any(map(keyword.iskeyword, name.split(".")))]:
        raise CaptureError(f"a graph cannot contain the name {invalid[0]!r}, a Python keyword; rename it")
    own = {name.partition(".")[0] for name in (*dict(model.named_children()), *model.state_dict())}
    if taken := sorted(own & {"code", "graph"}):
        raise CaptureError(
            f"the model has a module or tensor called `{taken[0]}`, a name that torch.fx.GraphModule uses "
            "itself; rename it"
        )


def _module_name(path: str) -> str:
    return f"`{path}`" if path else "the model"


def _compiled_problem(path: str, module: nn.Module) -> str:
    """Return the problem with a module from torch.compile, or with a compiled forward; empty without one."""
    if type(module).__name__ == "OptimizedModule":
        return f"`{path}` comes from torch.compile; use the module that was compiled, `{path}._orig_mod`"
    if hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
        return f"the forward of `{path}` comes from torch.compile; keep the plain forward and compile the result"
    return ""


def _parallel_problem(path: str, module: nn.Module) -> str:
    kind = next((k.__name__ for k in type(module).__mro__ if k.__name__ in PARALLEL and _is_torchs(k)), "")
    return f"{_module_name(path)} is wrapped in {kind}; use {PARALLEL[kind]}" if kind else ""


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _quantized_problem(path: str, module: nn.Module) -> str:
    """Return the problem with a module whose weights are quantized; empty without one."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    kinds = [type(module), *(type(t) for t in own), *(type(t.data) for t in own)]
    found = any(f"{k.__module__}.".startswith(QUANTIZED) for k in kinds) or any(t.is_quantized for t in own)
    if not found:
        return ""
    return (
        f"{_module_name(path)} ({type(module).__name__}) is quantized, and quantized weights cannot be pruned; pass "
        "the float model from before quantization, and quantize the result"
    )


def _mask_problem(path: str, module: nn.Module) -> str:
    """Return the problem with a module with masks of torch.nn.utils.prune; empty without one."""
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001 -- there is no public way
    names = [hook._tensor_name for hook in hooks if isinstance(hook, BasePruningMethod)]  # noqa: SLF001
    if not names:
        return ""
    owner = f"model.get_submodule({path!r})" if path else "model"
    return (
        f"{_module_name(path)} has a mask of torch.nn.utils.prune, which recomputes `{names[0]}` before each forward; "
        f"make it permanent with torch.nn.utils.prune.remove({owner}, {names[0]!r})"
    )


def _weight_norm_problem(path: str, module: nn.Module) -> str:
    """Return the problem with a hook-based weight norm, whose weight cannot be copied; empty without one."""
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 -- there is no public way
        if isinstance(hook, (WeightNorm, SpectralNorm)) and not getattr(module, hook.name).is_leaf:
            kind = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
            return (
                f"{_module_name(path)} uses torch.nn.utils.{kind}, whose weights cannot be copied; switch to "
                f"torch.nn.utils.parametrizations.{kind}, or remove it with torch.nn.utils.remove_{kind}"
            )
    return ""


_PROBLEMS: tuple[Callable[[str, nn.Module], str], ...] = (
    _compiled_problem,
    _parallel_problem,
    _quantized_problem,
    _mask_problem,
    _weight_norm_problem,
)
"""Each returns the problem of a module at its path with the remedy; empty if there is none."""
