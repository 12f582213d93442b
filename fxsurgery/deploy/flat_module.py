"""A wrapper that gives any model the interface of an ONNX file: tensors in, tensors out."""

from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.inputs import Inputs, tensors_in

_STORES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


class Flat(nn.Module):
    """A module that takes the input tensors of `model` by position and returns a tuple of its output tensors.

    It has the parameters, buffers and submodules of the model, under their own names.
    """

    _whole: nn.Module
    _examples: Inputs

    def __init__(self, model: nn.Module, examples: Inputs) -> None:
        super().__init__()
        vars(self).update({name: getattr(model, name) for name in _STORES})
        vars(self).update(_whole=model, _examples=examples)

    @override
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        inputs = self._examples.map(lambda _: next(given))
        seen = {id(x) for x in tensors}
        outputs = list[Tensor]()
        for _, output in tensors_in(self._whole(*inputs.args, **inputs.kwargs)):
            # In a file, a tensor that is returned twice, or is an input, would be one value with two names.
            outputs.append(output.clone() if id(output) in seen else output)
            seen.add(id(output))
        return tuple(outputs)
