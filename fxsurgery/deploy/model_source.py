"""The model that a deploy chain starts from: a frozen copy, with its inputs, their batch dims and names."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from fxsurgery.argument_names import named
from fxsurgery.batch_layout import Statement, as_stated, by_running
from fxsurgery.deploy.random_inputs import kept_values
from fxsurgery.deploy.tensor_names import input_names, output_names
from fxsurgery.errors import ExportError, reason_of
from fxsurgery.example_inputs import ExampleInputs, inputs_of, remedy_for
from fxsurgery.inputs import Inputs, tensors_in


@dataclass(frozen=True, eq=False)
class Source:
    """The PyTorch model that a file must reproduce."""

    model: nn.Module
    """Copy of the model in eval mode on the CPU."""
    inputs: Inputs
    """Its example inputs on the CPU, with their batch dims."""
    kept: tuple[int, ...]
    """Indices of the input tensors whose values are kept when inputs are drawn at random."""
    names: tuple[str, ...]
    """Names of the input tensors."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example_inputs: ExampleInputs | None,
        example_kwargs: Mapping[str, Any] | None,
        batch_dims: Statement,
    ) -> Self:
        """Copy a model to the CPU in eval mode, and determine the batch dims of its inputs.

        Raises:
            ExportError: the model cannot be copied or does not run, or its inputs cannot be named.
            DataError: `batch_dims` does not fit the inputs.
        """
        frozen = frozen_copy(model)
        inputs = frozen_inputs(frozen, example_inputs, example_kwargs)
        if not inputs.tensors:
            raise ExportError(f"{named('example_inputs')} holds no tensor; pass at least one")
        inputs = located(frozen, inputs, batch_dims)
        kept = kept_values(inputs, partial(outputs_of, frozen))
        return cls(frozen, inputs, kept, tuple(input_names(frozen, inputs)))

    @cached_property
    def names_out(self) -> tuple[str, ...]:
        """Name of each output tensor, different from those of the inputs.

        Raises:
            ExportError: the model does not run.
        """
        return tuple(output_names(output_of(self.model, self.inputs), self.names))

    def outputs(self, inputs: Inputs | None = None) -> list[Tensor]:
        """Return the model's output tensors, on its example inputs by default.

        Raises:
            ExportError: the model does not run.
        """
        return outputs_of(self.model, self.inputs if inputs is None else inputs)

    def twin(self, model: nn.Module) -> Self:
        """Return the source for another model of the same structure, which is frozen already."""
        return replace(self, model=model)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode on the CPU.

    Raises:
        ExportError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model).eval().cpu()
    except Exception as error:
        raise ExportError(
            f"the model cannot be copied: {reason_of(error)}; remove what copy.deepcopy cannot copy"
        ) from error


def frozen_inputs(
    model: nn.Module, example_inputs: ExampleInputs | None, example_kwargs: Mapping[str, Any] | None
) -> Inputs:
    """Return example inputs of any form on the CPU, detached, with batch dims still to be determined.

    Raises:
        DataError: they have no known form.
    """
    return inputs_of(model, example_inputs, example_kwargs).map(lambda x: x.detach().cpu())


def located(model: nn.Module, inputs: Inputs, batch_dims: Statement) -> Inputs:
    """Return the inputs with the batch dims that are declared, or inferred from the model's outputs.

    Raises:
        ExportError: the model does not run, or the inputs are in containers that PyTorch's pytree does not know.
        DataError: what is stated does not fit the inputs.
    """
    input_names(model, inputs)  # refuses inputs that it cannot name, before the model is run
    if batch_dims is not None:
        return as_stated(inputs, batch_dims, inputs.names(model.forward))
    run = partial(outputs_of, model)
    return by_running(inputs, run, run(inputs), inputs.names(model.forward))[0]


def output_of(model: nn.Module, inputs: Inputs) -> object:
    """Return the model's output, of any structure.

    Raises:
        ExportError: it does not run.
    """
    own = inputs.clone()
    try:
        with torch.no_grad():
            output: object = model(*own.args, **own.kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs.tensors)
        raise ExportError(
            f"the model does not run on inputs of shape {shapes}: {reason_of(error)}; "
            f"{remedy_for(inputs, model.forward)}"
        ) from error
    return output


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return the model's output tensors, in order.

    Raises:
        ExportError: it does not run.
    """
    return [tensor for _, tensor in tensors_in(output_of(model, inputs))]
