"""Mutants of a saved result: what a disk, a person or an attacker may have made of it. Seeded.

Run as a script, it loads mutants of a folder under an audit hook, which no process can take off again:

    python mutants.py FOLDER COUNT SEED [signed] [kept]

Each must give an error of ours, or a result that equals the original; nothing may be imported, run, or opened for
writing meanwhile. With `signed` the mutant's digests are made to fit, as an attacker would make them: then a mutant may
differ from the original, and the same must hold otherwise. With `kept` they are loaded with `original=kept.Model()`.
"""

import copy
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import fxsurgery
import kept
from fxsurgery.errors import SurgeryError
from fxsurgery.saving.schema import digest_of, digest_of_file

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**9, 10**18, 2**63, -(2**63), 10**400, 0.0, -0.0, 0.5, 1e-300, 1e300,
    "", "x",
    "self", "forward", "__class__", "__globals__", "torch", "import os", "\n", '"', "'''", "../x", "a.b", "0", "*", "é",
    "\ufb01", "cuda:99", "float32", "nan", "training", "weight", "Module", "Sequential", "Linear", "opaque", "output",
    [], {},
    [[]], [1, 2], ["*"], {"tuple": []}, {"node": "x"}, {"float": "nan"}, {"float": "inf"}, {"tensor": "0"},
    {"opaque": ["os", "system"]}, {"opaque": []}, {"slice": [None, None, None]}, {"device": "meta"}, {"dtype": "int8"},
    {"size": [1, "a"]}, {"complex": ["nan", "inf"]}, {"ellipsis": True}, {"dict": [[[], 1]]}, {"dict": [["a", 1]]},
]  # fmt: skip


def spots(plain: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything stands in JSON."""
    yield at
    for key, part in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        yield from spots(part, (*at, key))


def at(plain: Any, spot: tuple[Any, ...]) -> Any:
    for key in spot:
        plain = plain[key]
    return plain


def change_json(plain: Any, rng: random.Random) -> Any:
    """JSON that differs in one thing."""
    plain = copy.deepcopy(plain)
    spot = rng.choice([s for s in spots(plain) if s])
    owner, key = at(plain, spot[:-1]), spot[-1]
    other = copy.deepcopy(at(plain, rng.choice(list(spots(plain)))))
    value = copy.deepcopy(rng.choice([rng.choice(ODD), other, near(owner[key], rng)]))
    match rng.choice(["set", "set", "set", "set", "drop", "double", "rename", "move"]):
        case "set":
            owner[key] = value
        case "drop":
            del owner[key]
        case "double" if isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        case "double":
            owner[f"{key}_2"] = copy.deepcopy(owner[key])
        case "rename" if isinstance(owner, dict):
            owner[rng.choice([o for o in ODD if isinstance(o, str)])] = owner.pop(key)
        case _ if isinstance(owner[key], list):
            rng.shuffle(owner[key])
        case _:
            owner[key] = value
    return plain


def near(value: Any, rng: random.Random) -> Any:
    """Something much like `value`."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 2, 100])
    if isinstance(value, float):
        return value * rng.choice([-1, 2, 1.0001]) + rng.choice([0, 1e-9])
    if isinstance(value, str) and value:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(["", "_", "x", ".", "\n", "1"]) + value[place + 1 :]
    return value


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes that differ somewhere."""
    place = rng.randrange(len(content) + 1)
    match rng.choice(["flip", "flip", "cut", "put", "double", "end"]):
        case "flip" if place < len(content):
            return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
        case "cut":
            return content[:place] + content[place + rng.randrange(1, 40) :]
        case "put":
            return content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:]
        case "double":
            return content[:place] + content[max(0, place - 20) :]
        case _:
            return content[:place]


def mutate(folder: Path, rng: random.Random, *, signed: bool) -> str:
    """Change one file of a saved result; what was done, in words."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = rng.choice(files)
    kind = rng.choice(["json"] * 8 + ["bytes"] * 3 + ["file"]) if not signed else "json"
    if kind == "json":
        path = rng.choice([p for p in files if p.suffix == ".json"])
        changed = change_json(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(changed, indent=rng.choice([None, 1])))
    elif kind == "bytes":
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    else:
        return replace_file(path, rng.choice(files), rng)
    if signed:
        sign(folder)
    return f"{kind} of {path.relative_to(folder)}"


def replace_file(path: Path, other: Path, rng: random.Random) -> str:
    """Put something else in the place of a file."""
    makers: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to a device": lambda: path.symlink_to("/dev/zero"),
        "another file": lambda: path.write_bytes(content),
        "an empty file": path.touch,
    }
    content, what = other.read_bytes(), rng.choice(list(makers))
    path.unlink()
    makers[what]()
    return f"{what} at {path.name}"


def sign(folder: Path) -> None:
    """Make the digests fit, where there is something to sign."""
    for path in [*folder.rglob("graph.json"), folder / "result.json"]:
        plain = json.loads(path.read_text())
        digests = plain.get("sha256") if isinstance(plain, dict) else None
        if not isinstance(digests, dict):
            continue
        for name in digests:
            if (path.parent / name).is_file() and name != path.name:
                digests[name] = digest_of_file(path.parent / name)
        digests[path.name] = digest_of(plain)
        path.write_text(json.dumps(plain))


HARMLESS = ("<eval_with_key>", "<string>")
"""Code that torch.fx and dataclasses generate."""
WATCHED = ("subprocess.", "os.", "socket.", "shutil.", "ctypes.", "pickle.", "import", "exec", "open", "builtins.input")
READS = {"os.listdir", "os.scandir", "os.stat", "os.getxattr"}


class Watch:
    """What an audit hook saw that loading should not do."""

    def __init__(self) -> None:
        self.seen, self.on = list[str](), False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event.startswith(WATCHED) and event not in READS and not self._is_harmless(event, args):
            self.seen.append(f"{event}{args}"[:300])

    @staticmethod
    def _is_harmless(event: str, args: tuple[Any, ...]) -> bool:
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            written = any(sign in (args[1] or "r") for sign in "wax+")
            return not written and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event == "exec":
            return args[0].co_filename.startswith(HARMLESS)
        return False


def judged(folder: Path, wanted: list[torch.Tensor] | None, original: torch.nn.Module | None) -> str:
    """What is wrong with how a mutant is loaded; nothing, where it is right."""
    try:
        found = fxsurgery.load(folder, original=original)
        text = repr(found) + found.summary()
        if wanted is not None:
            outputs = [*found.original.run_examples(), *found.program.run_examples()]
            if len(outputs) != len(wanted) or not all(map(torch.equal, outputs, wanted)):
                return f"other outputs: {text[:100]}"
    except SurgeryError as error:
        return "" if str(error) else "an error without words"
    except BaseException:  # noqa: BLE001 -- whatever it is, it is none of ours
        return traceback.format_exc()[-1500:]
    return ""


def main() -> int:
    folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    signed = "signed" in sys.argv
    warnings.simplefilter("ignore")
    original = kept.Model() if "kept" in sys.argv else None
    first = fxsurgery.load(folder, original=original)
    first.summary()
    wanted = [*first.original.run_examples(), *first.program.run_examples()]
    watch, faults, right = Watch(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            rng, mutant = random.Random(f"{seed} {number}"), Path(name) / "mutant"
            shutil.copytree(folder, mutant)
            what = mutate(mutant, rng, signed=signed)
            watch.on = True
            wrong = judged(mutant, None if signed else wanted, original)
            watch.on = False
            right += not wrong
            if wrong or watch.seen:
                faults += 1
                sys.stdout.write(f"mutant {number} ({what}): {wrong} {watch.seen}\n\n")
                watch.seen.clear()
            shutil.rmtree(mutant)
    sys.stdout.write(f"{right} of {count} right, {faults} faults\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
