"""Description of a torch module as its class and constructor arguments, verified by building it.

The arguments are read from the attributes of the same names. Arguments equal to their default are omitted, and (3, 3)
is written as 3 if that is equivalent. The module is then built on the meta device and compared with the original: every
attribute, and the shape of every tensor. A module with hooks or replaced methods has no such description.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from fxsurgery.errors import SavingError, reason_of
from fxsurgery.surroundings import without_warnings

CLASSES: Mapping[str, type[nn.Module]] = {
    NonDynamicallyQuantizableLinear.__name__: NonDynamicallyQuantizableLinear,
    **{
        n: c
        for n, c in vars(nn).items()
        if isinstance(c, type) and issubclass(c, nn.Module) and c not in {nn.Module, nn.DataParallel}
    },
}
"""Module classes of `torch.nn` by name."""

PLAIN_TREES: Mapping[str, type[nn.Module]] = {
    "Module": nn.Module, "Sequential": nn.Sequential, "ModuleList": nn.ModuleList, "ModuleDict": nn.ModuleDict,
}  # fmt: skip
"""Module classes without behavior beyond their registered children and tensors."""

_STATE_ATTRIBUTES = {"_parameters", "_buffers", "_modules", "training", "_flat_weights", "_flat_weight_refs"}
_CONSTRUCTOR_ERRORS = (
    TypeError, ValueError, RuntimeError, AttributeError, AssertionError, LookupError, ArithmeticError,
    NotImplementedError,
)  # fmt: skip
"""Exceptions that torch modules raise on invalid arguments."""
_IGNORED_PARAMETERS = {"self", "device", "dtype"}
_OPTIONS = {"dim", "n_power_iterations", "eps"}
_TENSOR_FLAGS = {"bias": ("bias", "in_proj_bias"), "add_bias_kv": ("bias_k",)}
"""Arguments that request a tensor, with the attributes that hold it."""


@dataclass(frozen=True)
class ConstructorCall:
    """A constructor call that builds a torch module."""

    name: str
    """Name of the class in `torch.nn`."""
    arguments: Mapping[str, Any]
    norms: tuple["Parametrization", ...] = ()

    @property
    def kind(self) -> type[nn.Module]:
        """The module class."""
        return CLASSES[self.name]

    def build(self) -> nn.Module:
        """Build the module with its tensors on the meta device.

        Raises:
            SavingError: torch rejects the arguments.
        """
        try:
            with torch.device("meta"), without_warnings():  # such as the warning that one layer makes no use of dropout
                module = self.kind(**self.arguments)
                for norm in self.norms:
                    norm.apply(module)
        except _CONSTRUCTOR_ERRORS as error:
            what = str(dict(self.arguments))[:200]
            raise SavingError(
                f"torch.nn.{self.name} cannot be built with {what}: {reason_of(error)[:400]}; load it with the "
                "version of PyTorch that saved it"
            ) from error
        return module.eval()


@dataclass(frozen=True)
class Parametrization:
    """A tensor of a module that is computed from others by `torch.nn.utils.parametrizations`."""

    function: str
    """`weight_norm` or `spectral_norm`."""
    tensor: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, module: nn.Module) -> None:
        """Apply the parametrization to `module`.

        Raises:
            SavingError: the parametrization is unknown or does not fit the module.
        """
        known: dict[str, Any] = {
            "weight_norm": parametrizations.weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
        }
        if self.function not in known:
            raise SavingError(f"unknown parametrization {self.function!r}; load it with the version that saved it")
        if self.tensor not in module._parameters or not self.options.keys() <= _OPTIONS:  # noqa: SLF001
            raise SavingError(
                f"{self.function} of {self.tensor!r} does not accept {', '.join(self.options)}; load it with the "
                "version that saved it"
            )
        known[self.function](module, self.tensor, **self.options)


def constructor_call(module: nn.Module) -> ConstructorCall:
    """Return the constructor call that builds `module`.

    Raises:
        SavingError: no constructor call reproduces it; the message says why.
    """
    kind = type(module).__mro__[1] if is_parametrized(module) else type(module)
    if CLASSES.get(kind.__name__) is not kind:
        raise SavingError(f"its class {kind.__module__}.{kind.__qualname__} is not part of torch.nn")
    norms = tuple(_norms(module)) if is_parametrized(module) else ()
    all_arguments = _arguments(module, kind)
    reasons = list[str]()
    for arguments in (_shortened(all_arguments), all_arguments):
        found = ConstructorCall(kind.__name__, _without_defaults(kind, arguments), norms)
        try:
            difference = _difference(found.build(), module)
        except SavingError as error:
            difference = str(error)
        if not difference:
            return found
        reasons.append(difference)
    raise SavingError(reasons[-1])


def parameters_of(kind: type[nn.Module]) -> list[inspect.Parameter]:
    """Return the constructor parameters of a module class, without those that a description never uses."""
    signature = inspect.signature(nn.RNNBase.__init__ if issubclass(kind, nn.RNNBase) else kind.__init__)
    found = [
        p for p in signature.parameters.values() if p.name not in _IGNORED_PARAMETERS and not p.name.startswith("_")
    ]
    if issubclass(kind, nn.RNNBase):
        found = [p for p in found if p.name != "mode"]
        if kind is nn.RNN:
            found.append(inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh"))
    return [p for p in found if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]


def _arguments(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    arguments = dict[str, Any]()
    for parameter in parameters_of(kind):
        name = parameter.name
        holders = [a for a in _TENSOR_FLAGS.get(name, ()) if hasattr(module, a)]
        if holders and not isinstance(getattr(module, holders[-1]), bool):
            arguments[name] = getattr(module, holders[-1]) is not None
        elif hasattr(module, name):
            arguments[name] = getattr(module, name)
        elif parameter.default is parameter.empty:
            raise SavingError(f"its attributes do not determine the argument {name!r} of torch.nn.{kind.__name__}")
    return arguments


def _shortened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:  # noqa: ANN401 -- any argument
        same = isinstance(value, tuple) and value and all(isinstance(v, int) and v == value[0] for v in value)
        return value[0] if same else value

    return {name: short(value) for name, value in arguments.items()}


def _without_defaults(kind: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {p.name: p.default for p in parameters_of(kind)}
    return {n: v for n, v in arguments.items() if not (type(v) is type(defaults[n]) and v == defaults[n])}


def _norms(module: nn.Module) -> Iterable[Parametrization]:
    for tensor, steps in module.parametrizations.items():  # type: ignore[operator, union-attr]
        step: Any = steps[0] if len(steps) == 1 else None
        match type(step).__name__:
            case "_WeightNorm":
                yield Parametrization("weight_norm", tensor, {"dim": None if step.dim == -1 else step.dim})
            case "_SpectralNorm":
                options = {name: getattr(step, name) for name in ("n_power_iterations", "eps", "dim")}
                yield Parametrization("spectral_norm", tensor, options)
            case _:
                raise SavingError(f"its {tensor} is parametrized by {', '.join(type(s).__name__ for s in steps)}")


def _difference(built: nn.Module, module: nn.Module) -> str:
    """Return a description of the first difference between the two; empty without one."""
    pairs = dict(built.named_modules()), dict(module.named_modules())
    if pairs[0].keys() != pairs[1].keys():
        return f"its class does not explain the modules {', '.join(sorted(pairs[0].keys() ^ pairs[1].keys()))}"
    for path, built_module in pairs[0].items():
        if found := _attributes_differ(built_module, pairs[1][path]):
            return f"`{path}`: {found}" if path else found
    shapes = [{n: t.shape for n, t in (*m.named_parameters(), *m.named_buffers())} for m in (built, module)]
    if shapes[0] != shapes[1]:
        name = next(n for n in shapes[0].keys() | shapes[1].keys() if shapes[0].get(n) != shapes[1].get(n))
        return f"its {name} has shape {shapes[1].get(name)}, but the constructor gives {shapes[0].get(name)}"
    return ""


def _attributes_differ(built: nn.Module, module: nn.Module) -> str:
    built_attributes, own_attributes = (
        {k: v for k, v in vars(m).items() if k not in _STATE_ATTRIBUTES} for m in (built, module)
    )
    for name, value in built_attributes.items():
        if name == "_load_state_dict_pre_hooks" and is_parametrized(module):
            continue  # these hooks load checkpoints of the older weight_norm, and every newer one has them
        if name not in own_attributes or not _same(value, own_attributes[name]):
            if name.endswith("_hooks"):
                return f"it has {name.strip('_')}"
            return f"its {name} is {str(own_attributes.get(name))[:60]}, but the constructor gives {str(value)[:60]}"
    differing = [n for n in own_attributes.keys() - built_attributes.keys() if hasattr(type(module), n)]
    return f"its {', '.join(differing)} was replaced on the instance" if differing else ""


def _same(left: object, right: object) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return False
    return type(left) is type(right) and bool(left == right)
