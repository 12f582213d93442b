"""A cache of exports: a program that is exported again with the same options gets the same file.

The cache key is a digest of the program (graph, weights, modules, example inputs) and of the options. Weights that were
modified in place since are different weights.
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
"""Largest total size of the cached files, in memory; the least recently used are evicted first."""
_INNER = {*vars(nn.Module()), "_graph", "_code", "_tracer_cls", "_tracer_extras", "meta"}
"""Attributes of every module, and those of a graph module for its graph, whose code is compared instead."""


@dataclass(eq=False)
class KeptExports:
    """Cache of exported files by digest."""

    most_bytes: int = MOST_BYTES
    _files: OrderedDict[str, tuple[OnnxModel, bytes]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def export(self, program: Program, path: Path, **options: Any) -> OnnxModel:  # noqa: ANN401
        """Write a program as one ONNX file, from the cache if it was exported with the same options before.

        Args:
            program: the program; it is not modified.
            path: where the file is written.
            options: options of `fxsurgery.deploy.export_onnx`.

        Raises:
            DataError: `batch_dims` does not fit the inputs.
            ExportError: it cannot be exported, or the file cannot be written.
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
            return  # another process has written to the path
        with self._lock:
            self._files[key] = made, content
            while sum(file.bytes for file, _ in self._files.values()) > self.most_bytes:
                self._files.popitem(last=False)


_DEFAULTS: Mapping[str, Any] = {
    "opset": None, "exporter": "auto", "dynamic_batch": True, "transforms": (), "check": True,
}  # fmt: skip
"""Defaults of the options, so that a default is part of the key whether it was passed or not."""
EXPORTS = KeptExports()
"""Cache of this process."""


def _key(program_digest: str, asked: Mapping[str, Any]) -> str:
    return f"{program_digest} {sorted(asked.items())!r}"


def digest_of(program: Program) -> str:
    """Return the SHA-256 of everything in a program that its export depends on."""
    found = hashlib.sha256(program.text().encode())
    for part in _parts(program):
        found.update(json.dumps(part).encode())
    return found.hexdigest()


def _parts(program: Program) -> Iterator[Any]:
    """Yield everything other than the text of the graph, as plain JSON."""
    model = program.graph_module
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield [name, digest(tensor)]
    for name, module in model.named_modules(remove_duplicate=False):
        held = {key: _held_value(value) for key, value in vars(module).items() if key not in _INNER}
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


def _held_value(value: object) -> Any:  # noqa: ANN401
    return digest(value) if isinstance(value, Tensor) else to_plain(value)
