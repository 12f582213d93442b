"""Symbolic tracing that raises for everything that torch.fx would silently drop or bake in.

torch.fx inlines a module by running its `forward` on proxies. Effects on the surroundings instead of on a tensor
create no node: a `no_grad` or autocast region, the backward of an `autograd.Function`, a hook, the current value of
`self.training`. The first two are detected when nodes are created; hooks are looked up before a module is entered;
small modules that read `self.training` are kept as leaves.
"""

import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from fxsurgery.capture.attention import as_operations, is_expandable
from fxsurgery.capture.in_thread import tracing_in_this_thread
from fxsurgery.ops import registry

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def constructors() -> tuple[Callable[..., object], ...]:
    """Return the functions that create a tensor of a given size; torch.fx sees traced sizes in them only if wrapped."""
    made = (spelling for o in registry.operators() if o.creates for spelling in registry.spellings(o))
    functions: list[Callable[..., object]] = [s.key for s in made if s.form == "function"]
    return tuple(f for f in functions if getattr(torch, f.__name__, None) is f)


class UntraceableError(Exception):
    """Tracing would lose something. The traceback shows where; `remedy` says what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class CaptureTracer(fx.Tracer):
    """Traces a model with a given number of positional inputs, and records which modules it entered."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: int, leaf_modules: tuple[type[nn.Module], ...]) -> None:
        super().__init__(autowrap_functions=constructors())
        self._autowrap_search.append(torch)
        self._inputs = inputs
        self._leaf_modules = leaf_modules
        self._surroundings = _surroundings()
        self.entered: list[str] = []
        """Paths of the inlined modules in call order; "" is the model itself."""
        self.inside: list[str] = []
        """Paths of the modules being called, outermost first; after an error, the last one is where it happened."""

    @override
    def trace(
        self, root: nn.Module | Callable[..., object], concrete_args: dict[str, object] | None = None
    ) -> fx.Graph:
        """Return the graph of `root`, without keeping a reference to it; other threads are not affected."""
        try:
            with tracing_in_this_thread():
                return super().trace(root, concrete_args)
        finally:
            # torch.fx leaves a closure in a reference cycle with this tracer.
            self.root, self.tensor_attrs, self.submodule_paths = nn.Module(), {}, None

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return is_leaf(m, self._leaf_modules)

    @override
    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[object]]:
        # Arguments beyond the example inputs keep their defaults and never become placeholders.
        del is_module, concrete_args
        refuse_hooks(self.root, "")
        self.entered.append("")
        names = _argument_names(root_fn, self._inputs)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    @override
    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        path = self.path_of_module(m)
        depth = len(self.inside)
        self.inside.append(path)
        if not self.is_leaf_module(m, path):
            refuse_hooks(m, path)
            self.entered.append(path)
            if isinstance(m, nn.MultiheadAttention):
                forward = as_operations(m)
        result: object = super().call_module(m, forward, args, kwargs)
        del self.inside[depth:]
        return result

    @override
    def create_arg(self, a: Any) -> fx.node.Argument:
        # Generated code cannot refer to NumPy's types.
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    @override
    def create_node(
        self,
        kind: str,
        target: fx.node.Target,
        args: tuple[fx.node.Argument, ...],
        kwargs: dict[str, fx.node.Argument],
        name: str | None = None,
        type_expr: object = None,
    ) -> fx.Node:
        if kind.startswith("call_"):
            self._refuse_other_surroundings()
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["inside"] = self.inside[-1] if self.inside else ""
        return node

    def _refuse_other_surroundings(self) -> None:
        for name, state in _surroundings().items():
            if state != self._surroundings[name]:
                raise UntraceableError(
                    f"forward enters a region of {name}, which tracing would silently drop",
                    "Remove it from forward (to freeze a part, set requires_grad=False on its parameters)",
                )


def is_leaf(module: nn.Module, leaf_modules: tuple[type[nn.Module], ...]) -> bool:
    """Return True if a module becomes one node of the graph: torch's own layers, and modules that cannot be traced.

    Attention and transformer layers of torch are traced if their computation can be expressed as operations.
    """
    if isinstance(module, (*leaf_modules, torch.jit.ScriptModule)) or is_parametrized(module):
        return True
    if isinstance(module, nn.MultiheadAttention):
        return not is_expandable(module) or any(getattr(module, kind) for kind in HOOKS)
    if isinstance(module, COMPOSED):
        return False
    is_torch_layer = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return is_torch_layer or (_is_stateless(module) and reads_training(module))


COMPOSED = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip
"""Modules of torch that are made of others."""


def refuse_hooks(module: nn.Module, path: str) -> None:
    """Raise if a module that is about to be inlined has hooks.

    Raises:
        UntraceableError: it names the kinds of hooks.
    """
    hooks: list[dict[int, RemovableHandle]] = [getattr(module, kind) for kind in HOOKS]
    if any(hooks):
        where = f"`{path}`" if path else "the model itself"
        kinds = ", ".join(kind.strip("_") for kind, found in zip(HOOKS, hooks, strict=True) if found)
        raise UntraceableError(
            f"{where} ({type(module).__name__}) has {kinds}, which tracing would silently drop",
            "Remove the hooks before capture, or do their work in forward",
        )


def reads_training(module: nn.Module) -> bool:
    """Return True if the module's `forward` reads an attribute named `training`."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return isinstance(code, CodeType) and any("training" in part.co_names for part in _code_parts(code))


def _code_parts(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_parts(constant)


def _is_stateless(module: nn.Module) -> bool:
    return not any(True for group in (module.children, module.parameters, module.buffers) for _ in group())


def _argument_names(forward: Callable[..., object], count: int) -> list[str]:
    names = list[str]()
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            names.append(parameter.name)
    return names[:count]


def _surroundings() -> dict[str, object]:
    return {
        "torch.no_grad or torch.enable_grad": torch.is_grad_enabled(),
        "torch.inference_mode": torch.is_inference_mode_enabled(),
        "autocast on cpu": torch.is_autocast_enabled("cpu"),
        "autocast on cuda": torch.is_autocast_enabled("cuda"),
    }
