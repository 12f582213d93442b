"""Export of a program as Python code that needs only torch, verified in a separate process."""

from dataclasses import replace
from pathlib import Path

from fxsurgery.files import write_whole
from fxsurgery.program import Program
from fxsurgery.saving.folders import new_folder
from fxsurgery.saving.standalone.model_code import requirements, source
from fxsurgery.saving.standalone.verify import verify
from fxsurgery.saving.tensors import first_names, named_state, write_tensors
from fxsurgery.surroundings import plain_surroundings

__all__ = ["source", "write_standalone"]

CODE, WEIGHTS, REQUIREMENTS = "model.py", "weights.safetensors", "requirements.txt"
MARKER = "in plain PyTorch."
"""The end of the first line of the code, which identifies it as generated."""


@plain_surroundings()
def write_standalone(program: Program, folder: Path) -> None:
    """Write `model.py`, its weights and requirements as one folder, atomically.

    Args:
        program: the program to export.
        folder: the target folder.

    Raises:
        SavingError: a module cannot be written as code, or the code fails verification against the program.
        RunError: the folder cannot be written, or contains other files.
    """
    program = _on_cpu(program)
    with new_folder(folder, (CODE, WEIGHTS, REQUIREMENTS), MARKER) as fresh:
        state = named_state(program.graph_module)
        first = first_names(state)
        write_tensors(fresh / WEIGHTS, {name: tensor for name, tensor in state if first[name] == name})
        write_whole(fresh / CODE, source(program).encode())
        write_whole(fresh / REQUIREMENTS, requirements().encode())
        verify(program, fresh)


def _on_cpu(program: Program) -> Program:
    if all(t.device.type == "cpu" for _, t in named_state(program.graph_module)):
        return program
    examples = program.examples.map(lambda x: x.cpu())
    model = program.trainable_copy().cpu()
    return replace(program, graph_module=model, example_inputs=examples.args, example_kwargs=examples.kwargs)
