"""A program as a folder: `graph.json`, `weights.safetensors`, `examples.safetensors`. Nothing of it is run to read it.

What is written is read again before it is put in its place, and must compute what the program does, bit for bit.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxsurgery.errors import RunError, SavingError
from fxsurgery.files import settle, write_whole, writing
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.saving.functions import Function
from fxsurgery.saving.graphs import functions_of, graph_as_json, graph_from_json, path_checked
from fxsurgery.saving.modules import build, specs
from fxsurgery.saving.outputs import read_structure
from fxsurgery.saving.tensors import first_names, named_state, read_tensors, write_tensors
from fxsurgery.saving.values import decoded, encoded, tensors_as
from fxsurgery.seeding import seeded
from fxsurgery.surroundings import plain_surroundings

FORMAT = 1
GRAPH, WEIGHTS, EXAMPLES = "graph.json", "weights.safetensors", "examples.safetensors"
LARGEST_GRAPH = 2**28
"""Bytes of JSON."""

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
        original: your model, where modules or functions of it were kept whole: they are taken from it, copied.

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
        "examples": encoded((program.example_inputs, dict(program.example_kwargs)), tensors_as(examples)),
        **graph_as_json(graph_module.graph),
        "modules": specs(graph_module),
        "state": [_entry(graph_module, name, tensor, first[name]) for name, tensor in state],
    }
    write_tensors(folder / WEIGHTS, {name: tensor for name, tensor in state if first[name] == name})
    write_tensors(folder / EXAMPLES, examples)
    write_whole(folder / GRAPH, json.dumps(plain, indent=1).encode())
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
    called: list[Any] = [n.target for n in program.nodes if n.op == "call_function"]
    own = {(f.__module__, f.__qualname__): f for f in called if hasattr(f, "__qualname__")}
    try:
        again = read_program(folder, program.graph_module, own)
    except RunError as error:
        raise SavingError(f"what was written cannot be read again: {error}") from error
    devices = {t.device.type for t in (*program.examples.tensors, *program.graph_module.parameters())}
    if devices - {"cpu"}:
        return  # what is read back is on the CPU, where nothing rounds the same
    pairs = list(zip(_outputs(program), _outputs(again), strict=True))
    if odd := [i for i, (ours, theirs) in enumerate(pairs) if not _equal(ours, theirs)]:
        raise SavingError(f"what was written does not compute what the program does: outputs {odd} differ")


def _outputs(program: Program) -> list[Tensor]:
    with seeded(0, torch.device("cpu")):
        return program.run_examples()


def _equal(left: Tensor, right: Tensor) -> bool:
    same = left.shape == right.shape and left.dtype == right.dtype
    return same and bool(
        torch.equal(left.nan_to_num(), right.nan_to_num()) and torch.equal(left.isnan(), right.isnan())
    )


def read_program(
    folder: Path, original: nn.Module | None, functions: Mapping[tuple[str, str], Function] | None = None
) -> Program:
    """The program in `folder`, which may call `functions`, or those of the files of `original`."""
    plain = read_json(folder / GRAPH, FORMAT)
    weights, kept = read_tensors(folder / WEIGHTS), read_tensors(folder / EXAMPLES)
    with damage(folder):
        _ask_for_original(plain, original)
        args, kwargs = decoded(plain["examples"], {"tensor": kept.__getitem__})
        inputs = Inputs(args, kwargs)
        graph = graph_from_json(plain, inputs, functions_of(original) if functions is None else functions)
        graph_module = fx.GraphModule(nn.Module(), fx.Graph())
        _add_modules(graph_module, plain["modules"], original)
        _add_state(graph_module, plain["state"], weights)
        _check_targets(graph_module, graph)
        graph_module.graph = graph
        graph_module.recompile()
        log = tuple(map(str, plain["log"]))
        notes = tuple(dict.fromkeys((*map(str, plain["notes"]), *_unknown_outputs(plain))))
        return Program(graph_module.eval(), inputs.args, log, inputs.kwargs, notes, str(plain["name"]))


def _unknown_outputs(plain: Plain) -> Iterator[str]:
    stand_ins = set[str]()
    if plain.get("outputs") is not None:
        read_structure(plain["outputs"], stand_ins)
    for name in sorted(stand_ins):
        yield f"the output's {name} comes as a plain dict or tuple: import {name.partition('.')[0]} before loading"


def _ask_for_original(plain: Plain, original: nn.Module | None) -> None:
    opaque = [f"`{s['path']}` ({s['class']}: {s['reason']})" for s in plain["modules"] if s["kind"] == "opaque"]
    opaque += [".".join(n["target"]["opaque"]) for n in plain["nodes"] if isinstance(n["target"], dict)]
    if opaque and original is None:
        raise RunError(
            f"parts of your model were kept whole, and their code is not saved: {', '.join(opaque)}. Build the model "
            "as you did for the search, and pass it: load(folder, original=your_model)"
        )


def _add_modules(root: nn.Module, entries: list[Plain], original: nn.Module | None) -> None:
    for spec in entries:
        parent, _, leaf = path_checked(spec["path"]).rpartition(".")
        module = root.get_submodule(path_checked(spec["as"])) if spec["kind"] == "same" else build(spec, original)
        root.get_submodule(parent)._modules[leaf] = module  # noqa: SLF001 -- add_module refuses names such as "type"


def _add_state(root: nn.Module, entries: list[Plain], weights: Mapping[str, Tensor]) -> None:
    made = dict[str, Tensor]()
    wanted = {name: tensor.shape for name, tensor in named_state(root)}
    for entry in entries:
        name = path_checked(entry["name"])
        source = entry.get("of", name)
        tensor = made[source] if "of" in entry else weights[source]
        if name in wanted and wanted[name] != tensor.shape:
            raise RunError(f"`{name}` is {tuple(tensor.shape)} in the weights and {tuple(wanted[name])} in the graph")
        if entry["kind"] == "parameter" and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=bool(entry["trains"]))
        made[name] = tensor
        _put(root, name, tensor, persistent=entry.get("persistent", True))
    if missing := sorted(wanted.keys() - made.keys()):
        raise RunError(f"there are no weights for {', '.join(missing[:4])}")


def _put(root: nn.Module, name: str, tensor: Tensor, *, persistent: bool) -> None:
    owner, _, leaf = name.rpartition(".")
    module = root.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        setattr(module, leaf, tensor)
    elif leaf in module._buffers:  # noqa: SLF001 -- no other way to ask
        module._buffers[leaf] = tensor  # noqa: SLF001 -- setattr would refuse another type
    else:
        module.register_buffer(leaf, tensor, persistent=persistent)


def _check_targets(root: nn.Module, graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_module":
            root.get_submodule(str(node.target))
        elif node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            module = root.get_submodule(owner)
            if leaf != "training" and not isinstance(getattr(module, leaf, None), Tensor):
                raise RunError(f"the node `{node.name}` reads `{node.target}`, which is no tensor")


def read_json(path: Path, newest: int) -> Plain:
    """A JSON object with a `format`.

    Raises:
        RunError: it is not there, damaged, or of a later version.
    """
    with writing(path):
        if path.stat().st_size > LARGEST_GRAPH:
            raise RunError(f"{path} is larger than {LARGEST_GRAPH} bytes")
        content = path.read_bytes()
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(plain, dict) or not isinstance(plain.get("format"), int):
        raise RunError(f"{path} is nothing that fxsurgery wrote")
    if plain["format"] > newest:
        raise RunError(f"{path} is of format {plain['format']}, and this fxsurgery reads up to {newest}: update it")
    return plain


@contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with a file that somebody changed into an error of ours."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, SyntaxError) as error:
        raise RunError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


@contextmanager
def new_folder(path: Path, ours: Sequence[str], sign: str) -> Iterator[Path]:
    """A folder to write into that takes the place of `path` once all is written.

    Args:
        path: where it goes.
        ours: the names that a folder may hold which is replaced; the first must be there.
        sign: what the first of them says somewhere, if it is of ours.

    Raises:
        RunError: the system refuses, or `path` holds something else.
    """
    with writing(path):
        if path.exists() and (stray := _stray(path, ours, sign)):
            raise RunError(f"{path} holds something else ({stray}): give an empty folder, or a new one")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield fresh
        with writing(path):
            fresh.chmod(0o755)
            _swap(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _stray(path: Path, ours: Sequence[str], sign: str) -> str:
    """What keeps `path` from being replaced: the name of something in it that was not written here."""
    if not path.is_dir():
        return path.name
    there = {part.name for part in path.iterdir()}
    if stray := sorted(there - {*ours, "__pycache__"}):
        return stray[0]
    first = path / ours[0]
    is_ours = first.is_file() and sign in first.read_text(encoding="utf-8", errors="replace")
    return "" if is_ours or not there else min(there)


def _swap(fresh: Path, path: Path) -> None:
    """Put `fresh` in the place of `path`. What was there is moved away first, and back if that fails."""
    settle(fresh)
    if not path.exists():
        fresh.rename(path)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / "old"
        path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            old.rename(path)
            raise
        finally:
            shutil.rmtree(old.parent, ignore_errors=True)
    settle(path.parent)
