"""Exports of programs, each done once: a program that is exported alike again gets the file of before.

What an export depends on is the program (graph, weights, modules, example inputs) and what was asked for; all of it is
in the digest that a file is kept by. Weights that were written to in place since are other weights.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor, nn

from fxsurgery.batch_layout import statement_of
from fxsurgery.deploy.chain import require_place
from fxsurgery.deploy.export import export_onnx
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.errors import ExportError, RunError
from fxsurgery.files import write_whole
from fxsurgery.program import Program
from fxsurgery.runs.identity import to_plain
from fxsurgery.tensor_state import digest

MOST_BYTES = 512 * 2**20
"""Of all files that are kept, in memory; those used least recently go first."""
_INNER = {*vars(nn.Module()), "_graph", "_code", "_tracer_cls", "_tracer_extras", "meta"}
"""Attributes of every module, and those of a graph module for its graph, whose code is compared instead."""


@dataclass(eq=False)
class KeptExports:
    """Files by the digests of what they were made of."""

    most_bytes: int = MOST_BYTES
    _files: OrderedDict[str, tuple[OnnxModel, bytes]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def export(self, program: Program, path: Path, **options: Any) -> OnnxModel:  # noqa: ANN401
        """Write a program as one ONNX file, anew only where it was not written alike before.

        Args:
            program: it is not changed.
            path: where the file goes.
            options: as of `fxsurgery.deploy.export_onnx`.

        Raises:
            DataError: `batch_dims` does not fit the inputs.
            ExportError: it cannot be exported, or not be written there.
        """
        asked = {"batch_dims": statement_of(program.examples), **_DEFAULTS, **options}
        program_digest = digest_of(program)
        key = _key(program_digest, asked)
        with self._lock:
            known = self._files.get(key)
            if known is not None:
                self._files.move_to_end(key)
        if known is not None:
            require_place(path)
            try:
                write_whole(path, known[1])
            except RunError as error:
                raise ExportError(f"cannot write {path}: {error}; choose a path that you may write to") from error
            return replace(known[0], path=path)
        made = export_onnx(program.graph_module, program.examples, path, **asked)
        self._keep(key, made)
        if made.fallback_reason is None:
            self._keep(_key(program_digest, asked | {"exporter": made.exporter}), made)
        return made

    def _keep(self, key: str, made: OnnxModel) -> None:
        if made.bytes > self.most_bytes:
            return
        content = made.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != made.sha256:
            return  # another process has written there
        with self._lock:
            self._files[key] = made, content
            while sum(file.bytes for file, _ in self._files.values()) > self.most_bytes:
                self._files.popitem(last=False)


_DEFAULTS: Mapping[str, Any] = {
    "opset": None, "exporter": "auto", "dynamic_batch": True, "transforms": (), "check": True,
}  # fmt: skip
"""What an option is where it is not given, so that it is part of the digest either way."""
EXPORTS = KeptExports()
"""Those of this process."""


def _key(program_digest: str, asked: Mapping[str, Any]) -> str:
    return f"{program_digest} {sorted(asked.items())!r}"


def digest_of(program: Program) -> str:
    """Return the SHA-256 of all in a program that its export depends on."""
    found = hashlib.sha256(program.text().encode())
    for part in _parts(program):
        found.update(json.dumps(part).encode())
    return found.hexdigest()


def _parts(program: Program) -> Iterator[Any]:
    """What there is beside the text of the graph, as plain JSON."""
    model = program.graph_module
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield [name, digest(tensor)]
    for name, module in model.named_modules(remove_duplicate=False):
        held = {key: _told(value) for key, value in vars(module).items() if key not in _INNER}
        yield [name, f"{type(module).__module__}.{type(module).__qualname__}", held]
    for node in program.nodes:
        if node.op == "call_function":
            yield to_plain(node.target)
    yield [
        to_plain(program.example_inputs),
        to_plain(dict(program.example_kwargs)),
        program.batch_dims,
        program.samples,
    ]


def _told(value: object) -> Any:  # noqa: ANN401
    return digest(value) if isinstance(value, Tensor) else to_plain(value)
