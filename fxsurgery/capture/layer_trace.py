"""Which layers with weights a run calls, modules or functions, and how small its feature maps get."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from torch.overrides import TorchFunctionMode
from typing_extensions import override


@dataclass(frozen=True)
class Layer:
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
    position: int = 1
    name: str = "weight"


_CALLS: Mapping[Callable[..., Any], _Call] = {
    torch.conv1d: _Call("conv1d"),
    torch.conv2d: _Call("conv2d"),
    torch.conv3d: _Call("conv3d"),
    F.conv1d: _Call("conv1d"),
    F.conv2d: _Call("conv2d"),
    F.conv3d: _Call("conv3d"),
    torch.conv_transpose1d: _Call("transposed1d"),
    torch.conv_transpose2d: _Call("transposed2d"),
    torch.conv_transpose3d: _Call("transposed3d"),
    F.conv_transpose1d: _Call("transposed1d"),
    F.conv_transpose2d: _Call("transposed2d"),
    F.conv_transpose3d: _Call("transposed3d"),
    F.linear: _Call("linear"),
    F.embedding: _Call("embedding"),
    F.embedding_bag: _Call("embedding"),
    F.layer_norm: _Call("layer norm", 2),
    F.batch_norm: _Call("norm", 1, "running_mean"),
    F.group_norm: _Call("norm", 2),
    F.instance_norm: _Call("norm", 3),
}
_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class Watch(TorchFunctionMode):
    """Notes the layers that are called and the sizes of their maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = list[Layer]()
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
        layer = self._layer(_CALLS[func], given, args, named) if func in _CALLS else None
        if layer is not None:
            self.layers.append(layer)
        result = func(*args, **named)
        if isinstance(given, Tensor) and isinstance(result, Tensor):
            self._measure(func, layer, given, result)
        return result

    def _noting(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            seen = () if given is None else tuple(given.shape)
            if isinstance(module, nn.RNNBase):
                kind, size, first = "recurrent", module.input_size, module.batch_first
                self.layers.append(Layer(kind, (size,), seen, name, batch_first=first))
            if isinstance(module, nn.MultiheadAttention):
                kind, size, first = "attention", module.embed_dim, module.batch_first
                self.layers.append(Layer(kind, (size,), seen, name, batch_first=first))

        return note

    def _layer(self, call: _Call, given: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Layer | None:
        weight = _argument(args, kwargs, call.position, call.name)
        if not isinstance(weight, Tensor) or not isinstance(given, Tensor):
            return None
        name, seen, shape = self._owners.get(id(weight), ""), tuple(given.shape), tuple(weight.shape)
        if call.kind.startswith("conv"):
            groups, stride = _argument(args, kwargs, 6, "groups") or 1, _argument(args, kwargs, 3, "stride") or 1
            stride = max(stride) if isinstance(stride, tuple | list) else stride
            return Layer(call.kind, (shape[1] * int(groups),), seen, name, int(stride))
        if call.kind.startswith("transposed"):
            return Layer(call.kind, shape[:1], seen, name)
        sizes = {"linear": shape[-1:], "embedding": shape[:1]}
        return Layer(call.kind, sizes.get(call.kind, shape), seen, name)

    def _measure(self, func: object, layer: Layer | None, given: Tensor, result: Tensor) -> None:
        """Look at a map: the output of a convolution or a pooling, or what a layer norm finds channels-last."""
        before, after = tuple(given.shape[2:]), tuple(result.shape[2:])
        if layer is not None and layer.kind == "layer norm" and given.dim() == 4 and len(layer.size) == 1:
            before = after = tuple(given.shape[1:3])
        elif func in _POOLS:
            after = after if max(after, default=1) > 1 else ()
        elif layer is None or not layer.kind.startswith("conv"):
            return
        if after and max(before) > 1:
            self.smallest_map = min(self.smallest_map or max(after), max(after))


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:  # noqa: ANN401
    return args[position] if position < len(args) else kwargs.get(name)
