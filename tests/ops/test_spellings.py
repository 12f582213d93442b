"""The same network, written in every way that PyTorch has, is one and the same to analysis and to every pass."""

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.structure import structure
from fxsurgery.ops import registry
from fxsurgery.passes import AddPool, Deepen
from fxsurgery.program import Program
from nonempty import nonempty
from ops import spelled


@pytest.mark.parametrize("name", spelled.with_several_spellings())
def test_every_spelling_gives_the_same_groups_macs_candidates_and_refusals(name):
    networks = list(spelled.networks(registry.named(name)))
    assert len(networks) > 1, f"say in ops/spelled.py what {name} takes, or why no network can hold it"
    (_, first), *others = networks
    wanted = spelled.facts(first)
    for spelling, program in nonempty(others):
        assert spelled.facts(program) == wanted, spelling


def test_what_is_excepted_is_declared():
    for names in nonempty(spelled.EXCEPT.values()):
        assert [registry.named(name).name for name in names.split()] == names.split()


IMAGE, SEQUENCE, CUBE = (2, 4, 6, 6), (2, 4, 6), (2, 4, 6, 6, 6)
PARAMETRIC = {
    "linear": (lambda: nn.Linear(6, 4), IMAGE, lambda x, w, b: (F.linear, (x, w, b), {})),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3), SEQUENCE, lambda x, w, b: (F.conv1d, (x, w, b), {})),
    "conv2d": (lambda: nn.Conv2d(4, 4, 3, groups=2), IMAGE, lambda x, w, b: (F.conv2d, (x, w, b), {"groups": 2})),
    "conv3d": (lambda: nn.Conv3d(4, 4, 3, stride=2), CUBE, lambda x, w, b: (F.conv3d, (x, w, b), {"stride": 2})),
    "conv_transpose1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3),
        SEQUENCE,
        lambda x, w, b: (F.conv_transpose1d, (x, w, b), {}),
    ),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3),
        IMAGE,
        lambda x, w, b: (F.conv_transpose2d, (x, w, b), {}),
    ),
    "conv_transpose3d": (
        lambda: nn.ConvTranspose3d(4, 6, 3),
        CUBE,
        lambda x, w, b: (F.conv_transpose3d, (x, w, b), {}),
    ),
    "layer_norm": (lambda: nn.LayerNorm(6), IMAGE, lambda x, w, b: (F.layer_norm, (x, (6,), w, b), {})),
    "rms_norm": (lambda: nn.RMSNorm(6), IMAGE, lambda x, w, _: (F.rms_norm, (x, (6,), w), {})),
    "group_norm": (lambda: nn.GroupNorm(2, 4), IMAGE, lambda x, w, b: (F.group_norm, (x, 2, w, b), {})),
    "prelu": (lambda: nn.PReLU(4), IMAGE, lambda x, w, _: (F.prelu, (x, w), {})),
}


def parametric(name, *, as_module):
    make, shape, call = PARAMETRIC[name]
    conv = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    root, graph = nn.Module(), fx.Graph()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        root.first, root.op = conv(3, 4, 3, padding=1), make()
        x = graph.call_module("first", (graph.placeholder("image"),))
        if as_module:
            op = graph.create_node("call_module", "op", (x,), name="op")
        else:
            tensors = [graph.get_attr(f"op.{n}") if hasattr(root.op, n) else None for n in ("weight", "bias")]
            function, args, kwargs = call(x, *tensors)
            op = graph.create_node("call_function", function, args, kwargs, name="op")
        size = root.op(torch.zeros(shape))[0].numel()
        root.head = nn.Linear(size, 5)
    graph.output(graph.call_module("head", (graph.call_function(torch.flatten, (op, 1)),)))
    return Program(fx.GraphModule(root, graph).eval(), (torch.rand(2, 3, *shape[2:]),))


@pytest.mark.parametrize("name", PARAMETRIC)
def test_a_layer_and_its_function_have_the_same_groups_and_macs(name):
    module, function = (parametric(name, as_module=as_module) for as_module in (True, False))
    groups = [[group.units.tolist() for group in structure(p).groups] for p in (module, function)]
    assert groups[0] == groups[1] != []
    assert cost(module).macs == cost(function).macs
    assert structure(module).inexact == structure(function).inexact


def network(function, given, channels, places):
    """Conv -> FUNCTION -> relu -> conv -> flatten -> linear, of what `given` makes of a map."""
    root, graph = nn.Module(), fx.Graph()
    root.first, root.second = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(channels, 4, 3, padding=1)
    root.head = nn.Linear(4 * places, 5)
    x = graph.call_module("first", (graph.placeholder("x"),))
    y = graph.create_node("call_function", torch.relu, (graph.call_function(function, given(x)),), name="relu")
    y = graph.call_function(torch.flatten, (graph.call_module("second", (y,)), 1))
    graph.output(graph.call_module("head", (y,)))
    return Program(fx.GraphModule(root, graph).eval(), (torch.rand(2, 3, 8),))


PLACES = {F.avg_pool1d: 4, F.max_pool1d: 4, F.adaptive_avg_pool1d: 2, F.lp_pool1d: 4}


@pytest.mark.parametrize("pool", PLACES)
def test_deepen_finds_its_site_behind_every_pool(pool):
    program = network(pool, lambda x: (x, 2, 2) if pool is F.lp_pool1d else (x, 2), 4, PLACES[pool])
    assert "relu" in {move.after for move in Deepen.candidates(program)}


def test_add_pool_finds_the_same_places_for_every_concatenation():
    programs = [network(f, lambda x: ([x, x], 1), 8, 8) for f in (torch.cat, torch.concat, torch.concatenate)]
    first, *others = [list(AddPool.candidates(program)) for program in programs]
    assert first
    assert others == [first, first]
