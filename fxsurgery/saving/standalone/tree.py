"""Constructor calls of a model's modules, and the code that accesses them."""

import keyword
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.argument_names import usage
from fxsurgery.errors import SavingError
from fxsurgery.program import Program
from fxsurgery.saving.constructors import ConstructorCall, Parametrization, constructor_call, parameters_of
from fxsurgery.saving.standalone.chains import ModuleChain, is_tree, ordered
from fxsurgery.saving.standalone.literals import text, to_code
from fxsurgery.saving.stochastic_depth import depth_of

GROUP_ATTRIBUTES = set(dir(nn.ModuleDict))


class Tree:
    """The constructor calls of a model, and the helpers that they need."""

    def __init__(self, program: Program, chains: Mapping[str, ModuleChain]) -> None:
        self.helpers = set[str]()
        """Helpers to define (`Group`, `StochasticDepth`) or import (`OrderedDict`, `weight_norm`, ...) in the file."""
        self._root, self._chains = program.graph_module, chains
        self._used = list(dict.fromkeys(str(n.target) for n in program.nodes if n.op in {"call_module", "get_attr"}))
        self._late = list[str]()
        self._known = dict[int, str]()
        self._kinds = {path: self._kind(path, m) for path, m in self._root.named_modules() if is_tree(m) or not path}

    def statements(self) -> list[str]:
        """Return the body of `__init__`."""
        made = [(name, self._module(name, module)) for name, module in ordered(self._root, "", self._used)]
        lines = [self._tensor_statement("", name, tensor) for name, tensor in _tensors(self._root)]
        match self._kinds[""]:
            case "list":
                lines.insert(0, f"super().__init__({', '.join(code for _, code in made)})")
            case "dict":
                keyed = ", ".join(f"{text(name)}: {code}" for name, code in made)
                lines.insert(0, f"super().__init__({{{keyed}}})")
            case _:
                lines = ["super().__init__()", *lines, *(f"self.{name} = {code}" for name, code in made)]
        return [*lines, *self._late, *self._ties(), *self._frozen()]

    @property
    def base(self) -> str:
        """The base class of the model's class; its children may have numbers as names."""
        return {"list": "nn.Sequential", "dict": "nn.ModuleDict"}.get(self._kinds[""], "nn.Module")

    def access(self, path: str) -> str:
        """Return the code that accesses the module or tensor at `path`."""
        code, at = "self", ""
        for part in path.split("."):
            kind = self._kinds.get(at, "leaf")
            code += f"[{part}]" if kind == "list" else f"[{text(part)}]" if kind == "dict" else f".{part}"
            at = f"{at}.{part}" if at else part
        return code

    def _kind(self, path: str, module: nn.Module) -> str:
        """Return how children of a container are accessed: "list" by index, "dict" by key, "named" by attribute."""
        names = [name for name, _ in (*ordered(module, path, self._used), *_tensors(module))]
        if not all(part.replace("_", "").replace("-", "").replace(" ", "").isalnum() for part in names):
            raise SavingError(
                f"`{path}` has child names that cannot be written as code: {names}; rename them, or use `save` instead"
            )
        numbered = names == [str(i) for i in range(len(names))] and not list(_tensors(module))
        if names and numbered:
            return "list"
        plain = all(n.isidentifier() and not keyword.iskeyword(n) for n in names)
        return "named" if plain else "dict"

    def _module(self, path: str, module: nn.Module) -> str:
        """Return the constructor call; a placeholder for an alias of another module, which is assigned later."""
        if id(module) in self._known:
            self._late.append(f"{self.access(path)} = {self.access(self._known[id(module)])}")
            return "nn.Module()"
        self._known[id(module)] = path
        if is_tree(module):
            return self._container(path, module)
        if (depth := depth_of(module)) is not None:
            self.helpers.add("StochasticDepth")
            mode = "" if depth.mode == "row" else f", mode={to_code(depth.mode).text}"
            return f"StochasticDepth({to_code(depth.p).text}{mode})"
        try:
            call = constructor_call(module)
        except SavingError as error:
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            raise SavingError(
                f"`{path}` ({kind}) cannot be written as code: {error}. Save the result with `save` instead, and load "
                f"it with {usage('original=your_model', 'original')}"
            ) from error
        return self._layer(call)

    def _layer(self, call: ConstructorCall) -> str:
        name = "Linear" if call.name == "NonDynamicallyQuantizableLinear" else call.name
        code = f"nn.{name}({_arguments(call)})"
        for norm in call.norms:
            code = self._parametrized(norm, code)
        return code

    def _parametrized(self, norm: Parametrization, code: str) -> str:
        self.helpers.add(norm.function)
        options = "".join(f", {name}={to_code(value).text}" for name, value in norm.options.items())
        return f"{norm.function}({code}, {text(norm.tensor)}{options})"

    def _container(self, path: str, module: nn.Module) -> str:
        parts = [(name, self._module(f"{path}.{name}", child)) for name, child in ordered(module, path, self._used)]
        tensors = list(_tensors(module))
        keyed = ", ".join(f"{text(name)}: {code}" for name, code in parts)
        if path in self._chains:
            if self._kinds[path] == "list":
                return f"nn.Sequential({', '.join(code for _, code in parts)})"
            self.helpers.add("OrderedDict")
            return f"nn.Sequential(OrderedDict({{{keyed}}}))"
        if self._kinds[path] == "list":
            return f"nn.ModuleList([{', '.join(code for _, code in parts)}])"
        if self._kinds[path] == "dict":
            self._late += [s for n, t in tensors if (s := self._tensor_statement(path, n, t))]
            return f"nn.ModuleDict({{{keyed}}})"
        self.helpers.add("Group")
        late = module._non_persistent_buffers_set  # noqa: SLF001 -- there is no public way
        self._late += [self._tensor_statement(path, n, t) for n, t in tensors if n in late]
        named = [(name, _tensor_code(tensor)) for name, tensor in tensors if name not in late]
        return f"Group({', '.join(f'{name}={code}' for name, code in (*named, *parts))})"

    def _tensor_statement(self, parent: str, name: str, tensor: Tensor) -> str:
        place = self.access(parent) if parent else "self"
        if isinstance(tensor, nn.Parameter):
            return f"{place}.{name} = {_tensor_code(tensor)}"
        owner = self._root.get_submodule(parent)
        persistent = "" if name not in owner._non_persistent_buffers_set else ", persistent=False"  # noqa: SLF001
        return f"{place}.register_buffer({text(name)}, {_tensor_code(tensor)}{persistent})"

    def _ties(self) -> Iterator[str]:
        first = dict[int, str]()
        modules = dict[int, str]()
        for path, module in self._root.named_modules(remove_duplicate=False):
            if modules.setdefault(id(module), path) != path:
                continue
            for name, tensor in _tensors(module):
                place = f"{path}.{name}" if path else name
                known = first.setdefault(id(tensor), place)
                if known != place:
                    yield f"{self.access(place)} = {self.access(known)}"

    def _frozen(self) -> Iterator[str]:
        """Yield statements for parameters without gradients where torch creates ones with gradients."""
        parameters = dict(self._root.named_parameters())
        frozen = [name for name, p in parameters.items() if not p.requires_grad and p.is_floating_point()]
        if frozen and len(frozen) == len(parameters):
            yield "self.requires_grad_(False)"
            return
        for name in frozen:
            yield f"{self.access(name)}.requires_grad_(False)"


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    own: Mapping[str, Any] = vars(module)
    return ((n, t) for n, t in (*own["_parameters"].items(), *own["_buffers"].items()) if t is not None)


def _tensor_code(tensor: Tensor) -> str:
    """Return code that creates a tensor or parameter of the same size."""
    size = ", ".join(map(str, tensor.shape)) or "()"
    code = f"torch.zeros({size}{_dtype(tensor)})"
    if not isinstance(tensor, nn.Parameter):
        return code
    return f"nn.Parameter({code}{'' if tensor.is_floating_point() else ', requires_grad=False'})"


def _dtype(tensor: Tensor) -> str:
    return "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"


def _arguments(call: ConstructorCall) -> str:
    """Return the code of the arguments: required ones by position, the others by keyword."""
    required = [p.name for p in parameters_of(call.kind) if p.default is p.empty]
    remaining = dict(call.arguments)
    positional = [to_code(remaining.pop(name)).text for name in required if name in remaining]
    return ", ".join([*positional, *(f"{name}={to_code(value).text}" for name, value in remaining.items())])
