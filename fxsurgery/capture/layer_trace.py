"""Trace of the layers with weights that a run calls, and of the smallest feature map."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from fxsurgery.ops import registry
from fxsurgery.ops.contractions import LINEAR
from fxsurgery.ops.facets import OperandArgument
from fxsurgery.ops.lookups import EMBEDDING, EMBEDDING_BAG
from fxsurgery.ops.norms import BATCH_NORM, LAYER_NORM
from fxsurgery.ops.operator import Operator


@dataclass(frozen=True)
class LayerRecord:
    """One call of a layer with weights."""

    kind: str
    """`conv1d` to `conv3d`, `transposed1d` to `transposed3d`, `linear`, `embedding`, `recurrent`, `attention`,
    `layer norm` or `norm`."""
    size: tuple[int, ...]
    """Input channels or features; number of rows of an embedding; normalized shape of a layer norm."""
    seen: tuple[int, ...]
    """Shape of the input."""
    name: str = ""
    """Path of the module; empty for weights computed in forward."""
    stride: int = 1
    batch_first: bool = True

    @override
    def __str__(self) -> str:
        return self.name or f"the first {self.kind}"

    @property
    def unbatched(self) -> bool:
        """Return True if PyTorch treated the input as a single sample."""
        dims = {"recurrent": 3, "attention": 3, "conv1d": 3, "conv2d": 4, "conv3d": 5}
        dims |= {"transposed1d": 3, "transposed2d": 4, "transposed3d": 5}
        return len(self.seen) < dims.get(self.kind, 0)


class _Call(NamedTuple):
    """The kind of layer that a torch function is, and its weight argument."""

    kind: str
    weight: OperandArgument


def _call_of(operator: Operator | None) -> _Call | None:
    """Return the kind and weight of a layer operator; None if it is no layer with weights."""
    if operator is None or operator.weight is None:
        return None
    weight = operator.weight.argument
    if operator.is_convolution and operator.window is not None:
        return _Call(f"{'transposed' if operator.window.transposed else 'conv'}{operator.rank}d", weight)
    if operator is BATCH_NORM:  # it may lack a weight but has statistics
        return _Call("norm", OperandArgument(1, "running_mean"))
    if operator.statistics is not None:
        return _Call("layer norm" if operator is LAYER_NORM else "norm", weight)
    names = {LINEAR: "linear", EMBEDDING: "embedding", EMBEDDING_BAG: "embedding"}
    return _Call(names[operator], weight) if operator in names else None


class LayerTracer(TorchFunctionMode):
    """Records the layers that a run calls and the size of its smallest feature map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = list[LayerRecord]()
        """Layers in call order; if the run failed, the last one is where."""
        self.smallest_map: int | None = None
        """Smallest height, width or length of a feature map before global pooling; None without one."""
        self._model = model
        tensors = (*model.named_parameters(), *model.named_buffers())
        self._owners = {id(tensor): name.rpartition(".")[0] for name, tensor in tensors}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context manager that records while the block runs."""
        handles = [
            module.register_forward_pre_hook(self._recording_hook(name), with_kwargs=True)
            for name, module in self._model.named_modules()
            if isinstance(module, nn.RNNBase | nn.MultiheadAttention)
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        input_tensor = _argument(args, named, 0, "input")
        operator = registry.of_function(func)
        call = _call_of(operator)
        layer = None if call is None else self._layer(call, input_tensor, args, named)
        if layer is not None:
            self.layers.append(layer)
        result = func(*args, **named)
        if isinstance(input_tensor, Tensor) and isinstance(result, Tensor):
            self._measure(operator, layer, input_tensor, result)
        return result

    def _recording_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            input_tensor = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            seen = () if input_tensor is None else tuple(input_tensor.shape)
            if isinstance(module, nn.RNNBase):
                kind, size, batch_first = "recurrent", module.input_size, module.batch_first
                self.layers.append(LayerRecord(kind, (size,), seen, name, batch_first=batch_first))
            if isinstance(module, nn.MultiheadAttention):
                kind, size, batch_first = "attention", module.embed_dim, module.batch_first
                self.layers.append(LayerRecord(kind, (size,), seen, name, batch_first=batch_first))

        return record

    def _layer(
        self, call: _Call, input_tensor: object, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> LayerRecord | None:
        weight = call.weight.of_call(args, kwargs)
        if not isinstance(weight, Tensor) or not isinstance(input_tensor, Tensor):
            return None
        name, seen, shape = self._owners.get(id(weight), ""), tuple(input_tensor.shape), tuple(weight.shape)
        if call.kind.startswith("conv"):
            groups, stride = _argument(args, kwargs, 6, "groups") or 1, _argument(args, kwargs, 3, "stride") or 1
            stride = max(stride) if isinstance(stride, tuple | list) else stride
            return LayerRecord(call.kind, (shape[1] * int(groups),), seen, name, int(stride))
        if call.kind.startswith("transposed"):
            return LayerRecord(call.kind, shape[:1], seen, name)
        sizes = {"linear": shape[-1:], "embedding": shape[:1]}
        return LayerRecord(call.kind, sizes.get(call.kind, shape), seen, name)

    def _measure(
        self, operator: Operator | None, layer: LayerRecord | None, input_tensor: Tensor, result: Tensor
    ) -> None:
        """Update the smallest map from the output of a convolution, pooling or channels-last layer norm."""
        before, after = tuple(input_tensor.shape[2:]), tuple(result.shape[2:])
        if layer is not None and layer.kind == "layer norm" and input_tensor.dim() == 4 and len(layer.size) == 1:
            before = after = tuple(input_tensor.shape[1:3])
        elif operator is not None and operator.is_pool and operator.window is not None and operator.window.kernel:
            after = after if max(after, default=1) > 1 else ()
        elif layer is None or not layer.kind.startswith("conv"):
            return
        if after and max(before) > 1:
            self.smallest_map = min(self.smallest_map or max(after), max(after))


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:  # noqa: ANN401
    return args[position] if position < len(args) else kwargs.get(name)
