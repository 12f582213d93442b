"""Which layers with weights a run calls, modules or functions, and how small its feature maps get."""

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
    """A call of a layer with weights."""

    kind: str
    """`conv`, `transposed` (with `1d`, `2d`, `3d` behind), `linear`, `embedding`, `recurrent`, `attention`,
    `layer norm` or `norm`."""
    size: tuple[int, ...]
    """Input channels or features; rows of an embedding; the shape that a layer norm runs over."""
    seen: tuple[int, ...]
    """Shape of what reached it."""
    name: str = ""
    """Of its module; empty for weights that were worked out on the way."""
    stride: int = 1
    batch_first: bool = True

    @override
    def __str__(self) -> str:
        return self.name or f"the first {self.kind}"

    @property
    def unbatched(self) -> bool:
        """Whether PyTorch took what reached it as one sample."""
        dims = {"recurrent": 3, "attention": 3, "conv1d": 3, "conv2d": 4, "conv3d": 5}
        dims |= {"transposed1d": 3, "transposed2d": 4, "transposed3d": 5}
        return len(self.seen) < dims.get(self.kind, 0)


class _Call(NamedTuple):
    """What a function of PyTorch's is, and where its weight stands."""

    kind: str
    weight: OperandArgument


def _call_of(operator: Operator | None) -> _Call | None:
    """How the call of an operator is noted; `None` where it is no layer with a weight."""
    if operator is None or operator.weight is None:
        return None
    weight = operator.weight.argument
    if operator.is_convolution and operator.window is not None:
        return _Call(f"{'transposed' if operator.window.transposed else 'conv'}{operator.rank}d", weight)
    if operator is BATCH_NORM:  # it may have no weight, and has its statistics all the same
        return _Call("norm", OperandArgument(1, "running_mean"))
    if operator.statistics is not None:
        return _Call("layer norm" if operator is LAYER_NORM else "norm", weight)
    names = {LINEAR: "linear", EMBEDDING: "embedding", EMBEDDING_BAG: "embedding"}
    return _Call(names[operator], weight) if operator in names else None


class Watch(TorchFunctionMode):
    """Notes the layers that are called and the sizes of their maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = list[LayerRecord]()
        """In the order of the calls; the last is where an error came up, if one did."""
        self.smallest_map: int | None = None
        """Least height, width or length of a feature map before global pooling."""
        self._model = model
        tensors = (*model.named_parameters(), *model.named_buffers())
        self._owners = {id(tensor): name.rpartition(".")[0] for name, tensor in tensors}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, note everything."""
        handles = [
            module.register_forward_pre_hook(self._noting(name), with_kwargs=True)
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
        given = _argument(args, named, 0, "input")
        operator = registry.of_function(func)
        call = _call_of(operator)
        layer = None if call is None else self._layer(call, given, args, named)
        if layer is not None:
            self.layers.append(layer)
        result = func(*args, **named)
        if isinstance(given, Tensor) and isinstance(result, Tensor):
            self._measure(operator, layer, given, result)
        return result

    def _noting(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            seen = () if given is None else tuple(given.shape)
            if isinstance(module, nn.RNNBase):
                kind, size, first = "recurrent", module.input_size, module.batch_first
                self.layers.append(LayerRecord(kind, (size,), seen, name, batch_first=first))
            if isinstance(module, nn.MultiheadAttention):
                kind, size, first = "attention", module.embed_dim, module.batch_first
                self.layers.append(LayerRecord(kind, (size,), seen, name, batch_first=first))

        return note

    def _layer(self, call: _Call, given: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> LayerRecord | None:
        weight = call.weight.of_call(args, kwargs)
        if not isinstance(weight, Tensor) or not isinstance(given, Tensor):
            return None
        name, seen, shape = self._owners.get(id(weight), ""), tuple(given.shape), tuple(weight.shape)
        if call.kind.startswith("conv"):
            groups, stride = _argument(args, kwargs, 6, "groups") or 1, _argument(args, kwargs, 3, "stride") or 1
            stride = max(stride) if isinstance(stride, tuple | list) else stride
            return LayerRecord(call.kind, (shape[1] * int(groups),), seen, name, int(stride))
        if call.kind.startswith("transposed"):
            return LayerRecord(call.kind, shape[:1], seen, name)
        sizes = {"linear": shape[-1:], "embedding": shape[:1]}
        return LayerRecord(call.kind, sizes.get(call.kind, shape), seen, name)

    def _measure(self, operator: Operator | None, layer: LayerRecord | None, given: Tensor, result: Tensor) -> None:
        """Look at a map: the output of a convolution or a pooling, or what a layer norm finds channels-last."""
        before, after = tuple(given.shape[2:]), tuple(result.shape[2:])
        if layer is not None and layer.kind == "layer norm" and given.dim() == 4 and len(layer.size) == 1:
            before = after = tuple(given.shape[1:3])
        elif operator is not None and operator.is_pool and operator.window is not None and operator.window.kernel:
            after = after if max(after, default=1) > 1 else ()
        elif layer is None or not layer.kind.startswith("conv"):
            return
        if after and max(before) > 1:
            self.smallest_map = min(self.smallest_map or max(after), max(after))


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:  # noqa: ANN401
    return args[position] if position < len(args) else kwargs.get(name)
