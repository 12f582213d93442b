"""The graph module of a traced graph: the user's tensors under the user's names, and all of them."""

import ast
import builtins
import inspect
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fxsurgery.argument_names import usage
from fxsurgery.errors import CaptureError, TrainOnlyError
from fxsurgery.ops import registry

SPEAKING = {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", *dir(builtins)}
"""Names by which the code that torch.fx writes for a graph may call something of its own."""


def build(traced: nn.Module, graph: fx.Graph, own: set[str]) -> fx.GraphModule:
    """The graph as a module that owns what it uses, in eval mode.

    Args:
        traced: the copy that was traced; its modules are taken over.
        graph: the graph of it.
        own: the state_dict keys of the user's model; no other tensor becomes part of a state_dict.
    """
    plain = fx.Graph()
    plain.output(plain.graph_copy(graph, {}))
    for node in plain.nodes:
        # Else the generated code asks torch.fx to patch a global "torch.arange" in every later tracing.
        operator = registry.of(node)
        if operator is not None and operator.creates:
            node.meta.pop("is_wrapped", None)
        # A graph module is read back by tracing its code, and these take a traced size in a tuple alone.
        if (
            operator is not None
            and operator.takes_sizes_apart
            and node.args
            and not isinstance(node.args[0], (tuple, list))
        ):
            node.args = (tuple(node.args),)
    _drop_rank_checks(plain)
    inputs = [n for n in plain.nodes if n.op == "placeholder"]
    for node, name in zip(inputs, input_names(plain, [str(n.target) for n in inputs]), strict=True):
        if node.target != name:
            node.target = name
            node._rename(name)  # noqa: SLF001 -- the code gives the value this name again
    graph_module = fx.GraphModule(traced, plain)
    buffers = dict(traced.named_buffers(remove_duplicate=False))
    for path in {str(node.target) for node in plain.nodes if node.op == "get_attr"}:
        parent, _, name = path.rpartition(".")
        owner = graph_module.get_submodule(parent)
        value = getattr(owner, name)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            # A constant can be a tensor of the user's module scope, which a copy of the model still shares.
            value = value if path in buffers else value.detach().clone()
            owner.register_buffer(name, value, persistent=path in own)
    return graph_module.eval()


def input_names(graph: fx.Graph, names: Sequence[str]) -> list[str]:
    """The names of inputs, with an underscore after those by which the code of `graph` calls something else."""
    if not set(names) & SPEAKING:
        return list(names)
    read, found = _names_read(graph), list[str]()
    for name in names:
        free = name
        while free in read or (free != name and free in {*names, *found}):
            free += "_"
        found.append(free)
    return found


def _names_read(graph: fx.Graph) -> set[str]:
    """What the code of a graph calls by name, its own values left out."""
    twin = fx.Graph()
    twin.output(twin.graph_copy(graph, {}))
    inputs = [n for n in twin.nodes if n.op == "placeholder"]
    for number, node in enumerate(inputs):
        node.target = f"_{number}"
        node._rename(f"_{number}")  # noqa: SLF001 -- else the value of an input called `self` would count
    code = ast.parse(twin.python_code("self").src)
    return {"self", "fx_pytree", "pytree", *(part.id for part in ast.walk(code) if isinstance(part, ast.Name))} - {
        n.name for n in twin.nodes
    }


def _drop_rank_checks(graph: fx.Graph) -> None:
    """Leave out `torch._assert(x.ndim == 4)`: the layers that follow check it as well, and such nodes are many."""
    for check in [n for n in graph.nodes if n.target is torch._assert]:  # noqa: SLF001
        condition = check.args[0]
        if not isinstance(condition, fx.Node) or condition.target is not operator.eq:
            continue
        rank, number = condition.args
        if isinstance(number, int) and isinstance(rank, fx.Node) and _is_rank(rank):
            graph.erase_node(check)
            if not condition.users:
                graph.erase_node(condition)
    # The message of such a check reads the rank once more.
    for node in [n for n in graph.nodes if not n.users and _is_rank(n)]:
        graph.erase_node(node)


def _is_rank(node: fx.Node) -> bool:
    return bool(node.target is getattr and node.args[1] == "ndim") or (
        node.op == "call_method" and node.target == "dim"
    )


def check_unassigned(traced: nn.Module) -> None:
    """Refuse a model that tracing left with a traced value where it had a parameter or buffer.

    Raises:
        CaptureError: it names the buffer and the file and line of the forward that assigned it.
    """
    for path, module in traced.named_modules():
        for name in (name for name, value in vars(module)["_buffers"].items() if isinstance(value, fx.Proxy)):
            code = inspect.unwrap(type(module).forward).__code__
            raise CaptureError(
                f"forward assigns the buffer `{name}` of {f'`{path}`' if path else 'the model'} "
                f"({type(module).__name__}, {code.co_filename}:{code.co_firstlineno}), which tracing would "
                f"silently drop. Update it in place (self.{name}.copy_(...)), or keep the module whole with "
                f"{usage(f'leaf_modules=({type(module).__name__},)', 'leaf_modules')}."
            )


def lost_tensors(graph_module: fx.GraphModule, model: nn.Module) -> list[str]:
    """The parameters and persistent buffers of the model that the graph module has under no name.

    A tensor of two names may keep one of them.

    Raises:
        CaptureError: the graph module has state that the model has not.
    """
    own, kept = model.state_dict().keys(), graph_module.state_dict().keys()
    if alien := sorted(kept - own):
        raise CaptureError(
            f"the graph has state that the model lacks: {', '.join(alien)}; report this model, or keep the module "
            f"that makes it whole with {usage('leaf_modules=(ThatModule,)', 'leaf_modules')}"
        )
    found = {id(tensor) for name, tensor in _state(model) if name in kept}
    return [name for name, tensor in _state(model) if name in own and id(tensor) not in found]


def left_over(graph_module: fx.GraphModule, model: nn.Module, reached_in_training: Sequence[str]) -> tuple[str, ...]:
    """What to say of tensors that no forward uses, and that the graph module is without.

    Args:
        graph_module: the graph.
        model: what it was taken of.
        reached_in_training: modules and parameters, by path, that forward uses in train mode.

    Raises:
        TrainOnlyError: train mode alone uses them, so that the graph module would not train as the model does.
    """
    lost = lost_tensors(graph_module, model)
    names = ", ".join(lost[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
    trained = [n for n in lost if any(n == path or n.startswith(f"{path}.") for path in reached_in_training)]
    if trained:
        modules = ", ".join(dict.fromkeys(name.partition(".")[0] for name in trained))
        raise TrainOnlyError(
            f"these tensors are only reached in train mode, and a captured model would lose them: {names}. "
            f"Build the model without {modules} (aux_logits=False or the like), or set it to None."
        )
    return (f"never used in forward, and left out: {names}",) if lost else ()


def check_unshared(twin: nn.Module, model: nn.Module) -> None:
    """Refuse a copy, or a graph module, that shares memory with the user's model."""
    users = {tensor.untyped_storage().data_ptr() for _, tensor in _state(model)} - {0}
    if shared := [name for name, t in _state(twin) if t.untyped_storage().data_ptr() in users]:
        raise CaptureError(
            f"copying the model shares {', '.join(shared)}: remove its own __deepcopy__, or copy these there"
        )


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
