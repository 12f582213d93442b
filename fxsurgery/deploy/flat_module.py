"""A model as exporters and ONNX Runtime know models: tensors in, tensors out."""

from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.inputs import Inputs, tensors_in

_STORES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


class Flat(nn.Module):
    """`model` on the tensors of its inputs, one after the other, to a tuple of the tensors of its output.

    It has the model's own parameters, buffers and submodules, under their own names.
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
            # In a file, what goes out twice, or as it came in, would be one value with two names.
            outputs.append(output.clone() if id(output) in seen else output)
            seen.add(id(output))
        return tuple(outputs)
