"""Saving of a program as a folder: `graph.json`, `weights.safetensors`, `examples.safetensors`.

Reading executes no code from the folder. Before a new folder is moved into place, it is read again, and the loaded
program must compute the same outputs, bit for bit.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxsurgery.argument_names import usage
from fxsurgery.errors import RunError, SavingError
from fxsurgery.files import write_whole
from fxsurgery.inputs import BatchDims, Inputs
from fxsurgery.program import Program
from fxsurgery.saving.folders import damage_reported, new_folder
from fxsurgery.saving.graphs import graph_as_json, graph_from_json
from fxsurgery.saving.module_refs import build, is_reserved, is_tree, specs, submodule
from fxsurgery.saving.original_calls import OriginalCalls, captures_of
from fxsurgery.saving.output_structure import read_structure
from fxsurgery.saving.schema import (
    FORMAT,
    OpaqueTarget,
    SavedGraph,
    identifier,
    read_saved,
    require_digests,
    with_digests,
)
from fxsurgery.saving.state import add_state, check_sizes, check_targets
from fxsurgery.saving.tensors import first_names, named_state, read_header, read_tensors, write_tensors
from fxsurgery.saving.values import decoded, encoded, tensors_as
from fxsurgery.seeding import seeded
from fxsurgery.surroundings import plain_surroundings

GRAPH, WEIGHTS, EXAMPLES = "graph.json", "weights.safetensors", "examples.safetensors"

Plain = dict[str, Any]


@plain_surroundings()
def save_program(program: Program, folder: str | Path) -> None:
    """Save `program` as a folder, atomically; an existing saved program is replaced.

    Args:
        program: the program to save.
        folder: the target folder.

    Raises:
        SavingError: a part of the program cannot be saved; the message names it.
        RunError: the folder cannot be written, or contains other files.

    Example:
        >>> import tempfile
        >>> from fxsurgery import capture
        >>> program = capture(nn.Linear(8, 4), torch.randn(2, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_program(program, Path(folder) / "linear")
        ...     load_program(Path(folder) / "linear").name
        'Linear'
    """
    with new_folder(Path(folder), (GRAPH, WEIGHTS, EXAMPLES), '"format"') as fresh:
        write_program(program, fresh)


@plain_surroundings()
def load_program(folder: str | Path, *, original: nn.Module | None = None) -> Program:
    """Load a program that `save_program` wrote, on the CPU.

    Args:
        folder: the folder.
        original: your model, needed if modules or functions of it are leaves of the graph: they are taken from it,
            modules as copies. The model is captured again on the saved example inputs; a leaf call that it does
            not make in the same way is rejected.

    Returns:
        The program.

    Raises:
        RunError: there is no program, it is damaged, it has a newer format, or it needs `original`.
        SavingError: it needs something that loading does not support.
    """
    return read_program(Path(folder), original)


def write_program(program: Program, folder: Path) -> None:
    """Write the files of `program` into `folder`, and verify them by reading them again."""
    graph_module, examples = program.graph_module, dict[str, Tensor]()
    state = named_state(graph_module)
    first = first_names(state)
    plain = {
        "format": FORMAT,
        "torch": torch.__version__.partition("+")[0],
        "name": program.name,
        "log": list(program.log),
        "notes": list(program.notes),
        "batch_dims": None if program.batch_dims is None else list(program.batch_dims),
        "samples": program.samples,
        "examples": encoded((program.example_inputs, dict(program.example_kwargs)), tensors_as(examples)),
        **graph_as_json(graph_module.graph),
        "modules": specs(graph_module),
        "state": [_entry(graph_module, name, tensor, first[name]) for name, tensor in state],
    }
    write_tensors(folder / WEIGHTS, {name: tensor for name, tensor in state if first[name] == name})
    write_tensors(folder / EXAMPLES, examples)
    content = with_digests(GRAPH, plain, {name: folder / name for name in (WEIGHTS, EXAMPLES)})
    write_whole(folder / GRAPH, json.dumps(content, indent=1).encode())
    _verify(program, folder)


def _entry(root: nn.Module, name: str, tensor: Tensor, first: str) -> Plain:
    owner, _, leaf = name.rpartition(".")
    is_parameter = isinstance(tensor, nn.Parameter)
    entry: Plain = {"name": name, "kind": "parameter" if is_parameter else "buffer"}
    if is_parameter:
        entry["trains"] = tensor.requires_grad
    elif leaf in root.get_submodule(owner)._non_persistent_buffers_set:  # noqa: SLF001
        entry["persistent"] = False
    return entry if name == first else {**entry, "of": first}


def _verify(program: Program, folder: Path) -> None:
    """Raise unless the written program computes the outputs of `program`, with leaves taken from `program` itself."""
    try:
        original_calls = OriginalCalls()
        original_calls.add_captures([program])
        again = read_program(folder, program.graph_module, original_calls)
    except RunError as error:
        raise SavingError(f"the written program cannot be read again: {error}; report this model") from error
    devices = {t.device.type for t in (*program.examples.tensors, *program.graph_module.parameters())}
    if devices - {"cpu"}:
        return  # the loaded program is on the CPU, which rounds differently
    pairs = list(zip(_outputs(program), _outputs(again), strict=True))
    if differing := [i for i, (expected, loaded) in enumerate(pairs) if not _equal(expected, loaded)]:
        raise SavingError(f"the written program and the original differ in outputs {differing}; report this model")


def _outputs(program: Program) -> list[Tensor]:
    with seeded(0, torch.device("cpu")):
        return program.run_examples()


def _equal(left: Tensor, right: Tensor) -> bool:
    same = left.shape == right.shape and left.dtype == right.dtype
    return same and bool(
        torch.equal(left.nan_to_num(), right.nan_to_num()) and torch.equal(left.isnan(), right.isnan())
    )


def read_program(folder: Path, original: nn.Module | None, original_calls: OriginalCalls | None = None) -> Program:
    """Read the program in `folder`, with leaf modules and functions taken from `original`.

    Args:
        folder: the folder.
        original: the user's model.
        original_calls: the calls that the user's model makes to its own code; by default it is captured to find them.
    """
    saved, plain = read_saved(folder / GRAPH, SavedGraph)
    tensors = read_tensors(folder / EXAMPLES)
    with damage_reported(folder):
        _require_original(saved, original)
        inputs = _inputs(saved, tensors)
        root = fx.GraphModule(nn.Module(), fx.Graph())
        own = _add_modules(root, saved, original)
        resized = {s.path for s in saved.modules if s.kind == "opaque" and s.sizes}
        check_sizes(root, saved.state, read_header(folder / WEIGHTS), resized)
        original_calls = original_calls or OriginalCalls()
        original_calls.add_captures(
            captures_of(original, inputs, [s.path for s in saved.modules if s.kind in {"opaque", "torch"}])
        )
        graph = graph_from_json(saved, inputs, original_calls, lambda path: id(submodule(root, path)) in own)
        add_state(root, saved.state, read_tensors(folder / WEIGHTS))
        check_targets(root, graph)
        require_digests(folder / GRAPH, plain, {name: folder / name for name in (WEIGHTS, EXAMPLES)})
        root.graph = graph
        root.recompile()
        notes = tuple(dict.fromkeys((*saved.notes, *_unknown_outputs(saved))))
        return Program(
            root.eval(), inputs.args, tuple(saved.log), inputs.kwargs, notes, saved.name, inputs.batch_dims,
            inputs.samples,
        )  # fmt: skip


def _inputs(saved: SavedGraph, tensors: Mapping[str, Tensor]) -> Inputs:
    """Return the example inputs; every tensor of the examples file must be part of them."""
    used = set[str]()

    def tensor(name: str) -> Tensor:
        used.add(name)
        return tensors[name]

    found = decoded(saved.examples, {"tensor": tensor})
    if used != tensors.keys():
        raise RunError(f"damaged: unused example tensors {', '.join(sorted(tensors.keys() - used))[:60]}")
    args, kwargs = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise RunError("damaged: the example inputs are not (args, kwargs)")
    kwargs = {identifier(name): value for name, value in kwargs.items()}
    return Inputs(args, kwargs, *_batch(saved, Inputs(args, kwargs).tensors))


def _batch(saved: SavedGraph, tensors: list[Tensor]) -> tuple[BatchDims | None, int | None]:
    """Return batch dims and number of samples; None for files written before these existed."""
    if saved.batch_dims is None:
        return None, None
    dims = tuple(saved.batch_dims)
    if len(dims) != len(tensors):
        raise RunError(f"damaged: batch_dims {dims} do not fit the {len(tensors)} example inputs")
    with_batch = [(x, dim) for x, dim in zip(tensors, dims, strict=True) if dim is not None]
    if any(dim >= x.dim() for x, dim in with_batch) or len({x.size(dim) for x, dim in with_batch}) > 1:
        raise RunError(f"damaged: batch_dims {dims} do not fit the shapes of the example inputs")
    return dims, saved.samples


def _unknown_outputs(saved: SavedGraph) -> Iterator[str]:
    replaced = set[str]()
    if saved.outputs is not None:
        read_structure(saved.outputs, replaced)
    for name in sorted(replaced):
        yield f"the output's {name} becomes a plain dict or tuple: import {name.partition('.')[0]} before loading"


def _require_original(saved: SavedGraph, original: nn.Module | None) -> None:
    opaque = [f"`{s.path}` ({s.class_name}: {s.reason})" for s in saved.modules if s.kind == "opaque"]
    opaque += [".".join(n.target.opaque) for n in saved.nodes if isinstance(n.target, OpaqueTarget)]
    if opaque and original is None:
        raise RunError(
            f"the program contains code of your model, which is not saved: {', '.join(opaque)}. Build the model "
            f"as for the search, and pass it: {usage('load(folder, original=your_model)', 'original')}"
        )


def _add_modules(root: nn.Module, saved: SavedGraph, original: nn.Module | None) -> set[int]:
    """Build every module; return the ids of those that come from `original`."""
    own = set[int]()
    for entry in saved.modules:
        parent, _, leaf = entry.path.rpartition(".")
        owner = submodule(root, parent)
        if owner is None or (parent and not is_tree(owner)) or leaf in vars(owner)["_modules"]:
            raise RunError(f"damaged: `{entry.path}` is a duplicate, or its parent cannot have children")
        if is_reserved(owner, leaf):
            raise RunError(f"damaged: `{entry.path}` is an attribute name of {type(owner).__name__}, not of a module")
        module = submodule(root, entry.first) if entry.kind == "same" else build(entry, original, len(saved.state))
        if module is None:
            raise RunError(f"damaged: `{entry.path}` is an alias of a module that does not exist")
        owner._modules[leaf] = module  # noqa: SLF001 -- add_module rejects some valid names
        if entry.kind == "opaque":
            own |= {id(part) for part in module.modules()}
    return own
