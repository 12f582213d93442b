"""Symbolic tracing that keeps whole what must stay whole, and says where it could not go on."""

import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from fxsurgery.errors import CaptureError

OWN_CODE = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))
"""Frames in here are not the user's."""


class Tracer(fx.Tracer):
    """`fx.Tracer` with more leaves, and with the path of the module that it is in."""

    def __init__(self, leaf_modules: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._leaf_modules = leaf_modules
        self.inside: list[str] = []

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*self._leaf_modules, torch.jit.ScriptModule)) or parametrize.is_parametrized(m):
            return True
        return super().is_leaf_module(m, module_qualified_name) or reads_its_mode(m)

    @override
    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result


def reads_its_mode(module: nn.Module) -> bool:
    """Whether a module without tensors or children acts by `self.training`: tracing would bake the mode in."""
    code = getattr(type(module).forward, "__code__", None)
    bare = not list(module.children()) and not module.state_dict()
    return bare and code is not None and "training" in code.co_names


def trace(model: nn.Module, example_inputs: Sequence[Tensor], leaf_modules: tuple[type[nn.Module], ...]) -> fx.Graph:
    """The graph of `model`, in the mode that it is in.

    Raises:
        CaptureError: tracing failed; the message names module path, file and line, and what to do.
    """
    tracer = Tracer(leaf_modules)
    hooked = [
        path
        for path, module in model.named_modules()
        if _has_hooks(module) and (not path or not tracer.is_leaf_module(module, path))
    ]
    if hooked:
        raise CaptureError(
            f"module {hooked[0] or '(the model itself)'!r} has forward or backward hooks, which a graph cannot "
            "keep; remove them, or keep the module whole with leaf_modules="
        )
    try:
        graph = tracer.trace(model, _concrete(model, len(example_inputs)))
    except Exception as error:
        raise CaptureError(_blame(model, tracer, error)) from error
    for node in [n for n in graph.nodes if n.op == "placeholder"][len(example_inputs) :]:
        if not node.users:
            graph.erase_node(node)
    return graph


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _concrete(model: nn.Module, given: int) -> dict[str, Any]:
    """Parameters of `forward` beyond the example inputs take their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    late = [*positional[given:], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
    return {p.name: p.default for p in late if p.default is not p.empty}


def _blame(model: nn.Module, tracer: Tracer, error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*OWN_CODE, "<"))]
    where = f'{frames[-1].filename}:{frames[-1].lineno}: "{frames[-1].line}"' if frames else "in its forward"
    path = tracer.inside[-1] if tracer.inside else ""
    inside = f"module {path!r} ({type(model.get_submodule(path)).__name__})" if path else type(model).__name__
    what, remedy = _explain(error)
    text = str(error).strip().splitlines()
    return f"{inside} cannot be traced: {what} at {where} [{type(error).__name__}: {text[0] if text else ''}]. {remedy}"


def _explain(error: BaseException) -> tuple[str, str]:
    leaf = "Or keep the module whole: leaf_modules=(ItsClass,)."
    text = str(error)
    if "control flow" in text:
        return "a branch on a tensor's value or shape", f"Use torch.where, or decide in __init__. {leaf}"
    if "len" in text and "Proxy" in text:
        return "len() of a tensor", f"Use x.shape[0]. {leaf}"
    if "iterat" in text or "unpack" in text:
        return "iteration over a tensor", f"Use x.unbind() with a known size, or index it. {leaf}"
    if "__index__" in text or "Proxy" in text or "item" in text or "__int__" in text or "__float__" in text:
        return "a tensor turned into a number or passed to code outside torch", f"Keep it a tensor. {leaf}"
    return "the code raised", f"Write it with torch operations alone. {leaf}"
