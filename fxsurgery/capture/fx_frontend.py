"""Front end 1: trace symbolically in both modes, make mode-dependent values follow the mode, and build the module."""

from contextlib import suppress

from torch import fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.argument_names import usage
from fxsurgery.capture.alignment import Alignment
from fxsurgery.capture.build import build, check_unassigned, unused_tensor_notes
from fxsurgery.capture.diagnostics import untraceable
from fxsurgery.capture.model_copies import ModelCopies
from fxsurgery.capture.norms import lift_batch_norms, restore_plain_norms
from fxsurgery.capture.trace import Recording, UnsupportedCodeError
from fxsurgery.capture.trace_frontend import CapturedGraph
from fxsurgery.capture.tracer import CaptureTracer
from fxsurgery.errors import CaptureError


def trace_graph(
    copies: ModelCopies,
    model: nn.Module,
    inputs: int,
    leaf_modules: tuple[type[nn.Module], ...],
    trained: fx.Graph | None,
) -> CapturedGraph:
    """Trace a copy of `model` in eval mode.

    Args:
        copies: provides the copy.
        model: the private model, left unchanged.
        inputs: number of positional inputs.
        leaf_modules: module types to keep as leaves.
        trained: the train-mode graph, as `trace_in_train_mode` returns it.

    Raises:
        CaptureError: it cannot be traced, or loses something; the message names the line.
    """
    # train() first: a model may cache values derived from its parameters until it is trained again.
    private = copies.take(model).train().eval()
    tracer = CaptureTracer(inputs, leaf_modules)
    try:
        graph = tracer.trace(private)
    except Exception as error:
        raise untraceable(error, model, next(reversed(tracer.inside), "")) from error
    if wrapped := [n for n in graph.nodes if n.op == "call_function" and not _is_of_torch(n)]:
        raise CaptureError(
            f"the function {wrapped[0].target} is wrapped for torch.fx, which does not trace into it; pass "
            f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')} to keep the module that calls it as a leaf"
        )
    check_unassigned(private)
    lifted = lift_batch_norms(graph, private)
    # If the modes run different operations, nothing follows the mode; the checks decide whether that matters.
    with suppress(UnsupportedCodeError):
        eval_mode = _recording(graph)
        Alignment(eval_mode, eval_mode, _recording(trained or graph), eval_mode, batch=1, batched=(0, 0)).align()
    restore_plain_norms(graph, private, lifted)
    graph_module = build(private, graph, set(model.state_dict()))
    return CapturedGraph(
        graph_module, tuple(tracer.entered), unused_tensor_notes(graph_module, model, used_paths(trained))
    )


def trace_in_train_mode(
    copies: ModelCopies, model: nn.Module, inputs: int, leaf_modules: tuple[type[nn.Module], ...]
) -> fx.Graph | None:
    """Return the train-mode graph; None if it cannot be traced."""
    private = copies.take(model).train()
    try:
        graph = CaptureTracer(inputs, leaf_modules).trace(private)
    except Exception:  # noqa: BLE001 - whatever the user's forward raises
        return None
    lift_batch_norms(graph, private)
    return graph


def used_paths(graph: fx.Graph | None) -> tuple[str, ...]:
    """Return the paths of the modules and parameters that a graph uses."""
    nodes = () if graph is None else graph.nodes
    return tuple(str(node.target) for node in nodes if node.op in {"call_module", "get_attr"})


def _recording(graph: fx.Graph) -> Recording:
    return Recording(graph, pytree.tree_structure(()), {}, ())


def _is_of_torch(node: fx.Node) -> bool:
    module = getattr(node.target, "__module__", None) or "torch"
    return module.partition(".")[0] in {"torch", "_operator", "builtins", "math"}
