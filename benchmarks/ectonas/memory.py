"""Memory of a generation of children before any of them trains, against a deep copy of each.

Every network is captured in a process of its own and all children of the first generation are made of it and held,
as a search does. Counted twice: the bytes of all distinct tensor storages among the start and its children; and the
resident set of the process (Linux), which has graphs, modules and remembered facts in it too. Then each child is copied
in full, and the resident set is read once more.
"""

import argparse
import gc
import multiprocessing
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.ectonas.together import one_thread
from benchmarks.ectonas.trial import NETS
from benchmarks.models import PRESETS
from benchmarks.runs import Figures, once
from benchmarks.tables import Table, write
from fxsurgery import Ectonas, Program, capture
from fxsurgery.searchers.common.moves import Amounts
from fxsurgery.searchers.ectonas import start_nets
from fxsurgery.searchers.ectonas.population import Population

_PAGE = 4096
MB = 1e6
OTHERS = ("R20w8", "resnet18")
COLUMNS = {
    "network": "",
    "params": ",.0f",
    "children": ".0f",
    "seconds": ".1f",
    "start, MB": ".2f",
    "with its children, MB": ".2f",
    "deep copies, MB": ".2f",
    "times as much": ".1f",
    "resident, MB": ".0f",
    "resident with deep copies, MB": ".0f",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this part."""
    parser.add_argument("--nets", nargs="+", default=[*NETS, *OTHERS], choices=[*NETS, *OTHERS], metavar="NET")
    parser.add_argument("--places", type=int, default=8, help="maximum number of places tried per operation")


def main(options: argparse.Namespace) -> None:
    """Measure what is missing, then write the table."""
    print(f"about {sum(1.0 if net == OTHERS[1] else 0.2 for net in options.nets):.0f} minutes", flush=True)
    found = dict[str, Figures]()
    for net in options.nets:
        found[net] = once(f"ectonas-memory-{net}-{options.places}", lambda net=net: _apart(net, options.places))
        print(f"{net}: {found[net]['children']:.0f} children, {found[net]['shared'] / MB:.1f} MB", flush=True)
    print(write(table(options, found), "ectonas-memory"))


def table(options: argparse.Namespace, found: Mapping[str, Figures]) -> Table:
    """A row a network."""
    notes = (
        f"The first generation of each network: every operation at up to {options.places} places. 'with its children' "
        "are the distinct tensors of the start and all its children, 'deep copies' those if each child had its own; "
        "'times as much' is the one over the other. 'resident' is by how much the process grew while the children were "
        "made, graphs and remembered facts among it, and by how much more as each was copied in full."
    )
    rows = [_row(net, figures) for net, figures in found.items()]
    return Table("ECToNAS, memory of a generation before it trains", COLUMNS, rows, [0], notes)


def _row(net: str, found: Figures) -> dict[str, Any]:
    return {
        "network": net,
        "params": found["params"],
        "children": found["children"],
        "seconds": found["seconds"],
        "start, MB": found["start"] / MB,
        "with its children, MB": found["shared"] / MB,
        "deep copies, MB": found["copied"] / MB,
        "times as much": found["copied"] / found["shared"],
        "resident, MB": found["resident"] / MB,
        "resident with deep copies, MB": (found["resident"] + found["resident copies"]) / MB,
    }


def _apart(net: str, places: int) -> Figures:
    """Measure in a process of its own, whose resident set has nothing of another network."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=one_thread) as pool:
        return pool.submit(measured, net, places).result()


def measured(net: str, places: int) -> Figures:
    """The first generation of a network."""
    start = program_of(net)
    population = Population(
        operations=Ectonas().operations, amounts=Amounts(places=places), seed=0, most_params=10**9, most_growth=3.0
    )
    parent = population.start(start)
    before, began = resident(), time.monotonic()
    programs = [child.program for child in population.children([parent], 1)]
    children = [program for program in programs if program is not None]
    seconds, after = time.monotonic() - began, resident()
    copies = [child.trainable_copy() for child in children]
    return {
        "params": parent.costs["params"].value,
        "children": len(children),
        "seconds": seconds,
        "start": distinct_bytes([start]),
        "shared": distinct_bytes([start, *children]),
        "copied": distinct_bytes([start]) + sum(distinct_bytes([child]) for child in children),
        "resident": after - before,
        "resident copies": (resident() - after) if copies else 0,
    }


def program_of(net: str) -> Program:
    """A start net for 28x28 images, R20w8, or torchvision's ResNet-18, freshly initialized."""
    if net in PRESETS:
        return capture(PRESETS[net].model(0).eval(), torch.zeros(2, 1, 28, 28))
    if net == OTHERS[1]:
        return capture(_resnet18().eval(), torch.zeros(2, 3, 64, 64))
    size, _, kind = net.partition("-")
    model = start_nets.start_net(size, convolutions=kind == "cnn", seed=0)
    return capture(model.eval(), torch.zeros(2, 1, 28, 28))


def _resnet18() -> nn.Module:
    from torchvision.models import resnet18  # noqa: PLC0415 -- an extra, which no other part needs

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # noqa: TID251 -- nn.Module initializers draw from the global generator only
        return resnet18()


def distinct_bytes(programs: Iterable[Program]) -> int:
    """Bytes of the storages of all parameters and buffers, each storage once."""
    sizes = dict[int, int]()
    for program in programs:
        for tensor in program.graph_module.state_dict(keep_vars=True).values():
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE
