"""A program as a folder: `graph.json`, `weights.safetensors`, `examples.safetensors`. Nothing of it is run to read it.

What is written is read again before it is put in its place, and must compute what the program does, bit for bit.
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
from fxsurgery.saving.folders import damage, new_folder
from fxsurgery.saving.graphs import graph_as_json, graph_from_json
from fxsurgery.saving.module_refs import build, is_taken, is_tree, specs, submodule
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
from fxsurgery.saving.witness import Witness, captures
from fxsurgery.seeding import seeded
from fxsurgery.surroundings import plain_surroundings

GRAPH, WEIGHTS, EXAMPLES = "graph.json", "weights.safetensors", "examples.safetensors"

Plain = dict[str, Any]


@plain_surroundings()
def save_program(program: Program, folder: str | Path) -> None:
    """Write `program` as a folder, which is there whole or not at all; one that was there is replaced.

    Raises:
        SavingError: something of the program cannot be written; it says what.
        RunError: the folder cannot be written to, or holds something else.
    """
    with new_folder(Path(folder), (GRAPH, WEIGHTS, EXAMPLES), '"format"') as fresh:
        write_program(program, fresh)


@plain_surroundings()
def load_program(folder: str | Path, *, original: nn.Module | None = None) -> Program:
    """The program that `save_program` wrote there, on the CPU.

    Args:
        folder: the folder.
        original: your model, where modules or functions of it were kept whole: they are taken from it, modules as
            copies. It is captured anew on the saved example inputs, and what it does not call in the same way is
            refused.

    Raises:
        RunError: there is no program, it is damaged or of a later version, or it wants `original`.
        SavingError: it asks for what loading does not do.
    """
    return read_program(Path(folder), original)


def write_program(program: Program, folder: Path) -> None:
    """Write the files of `program` into `folder`, and read them again to prove them."""
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
    whole = with_digests(GRAPH, plain, {name: folder / name for name in (WEIGHTS, EXAMPLES)})
    write_whole(folder / GRAPH, json.dumps(whole, indent=1).encode())
    _prove(program, folder)


def _entry(root: nn.Module, name: str, tensor: Tensor, first: str) -> Plain:
    owner, _, leaf = name.rpartition(".")
    is_parameter = isinstance(tensor, nn.Parameter)
    entry: Plain = {"name": name, "kind": "parameter" if is_parameter else "buffer"}
    if is_parameter:
        entry["trains"] = tensor.requires_grad
    elif leaf in root.get_submodule(owner)._non_persistent_buffers_set:  # noqa: SLF001
        entry["persistent"] = False
    return entry if name == first else {**entry, "of": first}


def _prove(program: Program, folder: Path) -> None:
    """Raise unless what was written gives the outputs of `program`; its opaque parts are taken from itself."""
    try:
        witness = Witness()
        witness.hear([program])
        again = read_program(folder, program.graph_module, witness)
    except RunError as error:
        raise SavingError(f"what was written cannot be read again: {error}; report this model") from error
    devices = {t.device.type for t in (*program.examples.tensors, *program.graph_module.parameters())}
    if devices - {"cpu"}:
        return  # what is read back is on the CPU, where nothing rounds the same
    pairs = list(zip(_outputs(program), _outputs(again), strict=True))
    if odd := [i for i, (ours, theirs) in enumerate(pairs) if not _equal(ours, theirs)]:
        raise SavingError(
            f"what was written does not compute what the program does: outputs {odd} differ; report this model"
        )


def _outputs(program: Program) -> list[Tensor]:
    with seeded(0, torch.device("cpu")):
        return program.run_examples()


def _equal(left: Tensor, right: Tensor) -> bool:
    same = left.shape == right.shape and left.dtype == right.dtype
    return same and bool(
        torch.equal(left.nan_to_num(), right.nan_to_num()) and torch.equal(left.isnan(), right.isnan())
    )


def read_program(folder: Path, original: nn.Module | None, witness: Witness | None = None) -> Program:
    """The program in `folder`; what was kept whole is taken from `original`.

    Args:
        folder: where it is.
        original: the user's model.
        witness: tells what the user's model does where code of it was kept whole; else it is captured to see.
    """
    saved, plain = read_saved(folder / GRAPH, SavedGraph)
    kept = read_tensors(folder / EXAMPLES)
    with damage(folder):
        _ask_for_original(saved, original)
        inputs = _inputs(saved, kept)
        root = fx.GraphModule(nn.Module(), fx.Graph())
        own = _add_modules(root, saved, original)
        resized = {s.path for s in saved.modules if s.kind == "opaque" and s.sizes}
        check_sizes(root, saved.state, read_header(folder / WEIGHTS), resized)
        witness = witness or Witness()
        witness.hear(captures(original, inputs, [s.path for s in saved.modules if s.kind in {"opaque", "torch"}]))
        graph = graph_from_json(saved, inputs, witness, lambda path: id(submodule(root, path)) in own)
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


def _inputs(saved: SavedGraph, kept: Mapping[str, Tensor]) -> Inputs:
    """The example inputs: `(args, kwargs)`, in which every tensor of the file stands."""
    used = set[str]()

    def tensor(name: str) -> Tensor:
        used.add(name)
        return kept[name]

    found = decoded(saved.examples, {"tensor": tensor})
    if used != kept.keys():
        raise RunError(f"damaged: no example input is {', '.join(sorted(kept.keys() - used))[:60]}")
    args, kwargs = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise RunError("damaged: the example inputs are not (args, kwargs)")
    kwargs = {identifier(name): value for name, value in kwargs.items()}
    return Inputs(args, kwargs, *_batch(saved, Inputs(args, kwargs).tensors))


def _batch(saved: SavedGraph, tensors: list[Tensor]) -> tuple[BatchDims | None, int | None]:
    """Batch dims and number of samples; `None` in files from before these were written."""
    if saved.batch_dims is None:
        return None, None
    dims = tuple(saved.batch_dims)
    if len(dims) != len(tensors):
        raise RunError(f"damaged: batch_dims {dims} do not fit the {len(tensors)} example inputs")
    placed = [(x, dim) for x, dim in zip(tensors, dims, strict=True) if dim is not None]
    if any(dim >= x.dim() for x, dim in placed) or len({x.size(dim) for x, dim in placed}) > 1:
        raise RunError(f"damaged: batch_dims {dims} do not fit the shapes of the example inputs")
    return dims, saved.samples


def _unknown_outputs(saved: SavedGraph) -> Iterator[str]:
    stand_ins = set[str]()
    if saved.outputs is not None:
        read_structure(saved.outputs, stand_ins)
    for name in sorted(stand_ins):
        yield f"the output's {name} comes as a plain dict or tuple: import {name.partition('.')[0]} before loading"


def _ask_for_original(saved: SavedGraph, original: nn.Module | None) -> None:
    opaque = [f"`{s.path}` ({s.class_name}: {s.reason})" for s in saved.modules if s.kind == "opaque"]
    opaque += [".".join(n.target.opaque) for n in saved.nodes if isinstance(n.target, OpaqueTarget)]
    if opaque and original is None:
        raise RunError(
            f"parts of your model were kept whole, and their code is not saved: {', '.join(opaque)}. Build the model "
            f"as you did for the search, and pass it: {usage('load(folder, original=your_model)', 'original')}"
        )


def _add_modules(root: nn.Module, saved: SavedGraph, original: nn.Module | None) -> set[int]:
    """Build every module; what of them comes from `original`, by id."""
    own = set[int]()
    for entry in saved.modules:
        parent, _, leaf = entry.path.rpartition(".")
        owner = submodule(root, parent)
        if owner is None or (parent and not is_tree(owner)) or leaf in vars(owner)["_modules"]:
            raise RunError(f"damaged: `{entry.path}` is there twice, or part of what has no such part")
        if is_taken(owner, leaf):
            raise RunError(f"damaged: no module can be called `{entry.path}`: a {type(owner).__name__} has one already")
        module = submodule(root, entry.first) if entry.kind == "same" else build(entry, original, len(saved.state))
        if module is None:
            raise RunError(f"damaged: `{entry.path}` is another name of what is not there")
        owner._modules[leaf] = module  # noqa: SLF001 -- add_module refuses more
        if entry.kind == "opaque":
            own |= {id(part) for part in module.modules()}
    return own
