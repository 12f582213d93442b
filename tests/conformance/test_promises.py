"""The checker itself: a pass of a stranger is checked, and each way to break a promise is caught by name."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from conformance import promises
from conformance.graphs import Graph
from conformance.promises import Trial, check, registered
from conformance.smaller import smaller
from conformance.steps import Act, Again, Chunk, Conv, Head, Join, Norm, Tied
from fxsurgery.analysis.structure import ChannelGroup, Structure, structure
from fxsurgery.edit import Editor
from fxsurgery.errors import PassCrashedError, SpecError, SurgeryError
from fxsurgery.lineage import Origin
from fxsurgery.passes import ALL, FoldBn, parse
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, Trains
from nonempty import nonempty

PLAIN = Graph((3, 8, 8), (Conv(0, 4), Act(1), Conv(2, 4)), (Head((3,)),))


class Strange(nn.Conv2d):
    """A convolution of somebody's own."""


@dataclass(frozen=True)
class Faulty(Rewrite):
    """Changes `PLAIN` in one way that no pass may."""

    name: ClassVar[str] = "faulty"
    how: str = ""

    def rewrite(self, edit: Editor) -> Effect:
        return FAULTS[self.how][0](Site(edit))


class Site:
    """The two convolutions of `PLAIN`, and a copy of each to change and put in its place."""

    def __init__(self, edit: Editor) -> None:
        (self.node, self.conv), (self.reader, conv) = edit.program.calls(nn.Conv2d)
        self.edit, self.new, self.new_reader = edit, _like(self.conv), _like(conv)

    def put(self, first: nn.Module | None = None, second: nn.Module | None = None) -> Effect:
        for node, module in ((self.node, first), (self.reader, second)):
            if module is not None:
                self.edit.replace_module(str(node.target), module)
        return Effect.LOSSY

    def before(self, node: fx.Node, function: Callable[..., Tensor], *more: object) -> None:
        """Let `node` read what `function` makes of its input."""
        old = node.all_input_nodes[0]
        self.edit.rewire(node, old, self.edit.insert_function(function, (old, *more), before=node))


def _like(conv: nn.Conv2d) -> nn.Conv2d:
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    new.load_state_dict(conv.state_dict())
    return new


def _filled(conv: nn.Conv2d, value: float) -> nn.Conv2d:
    for parameter in conv.parameters():
        nn.init.constant_(parameter, value)
    return conv


def nothing(site: Site) -> Effect:
    return Effect.EXACT


def writes_to_the_input(site: Site) -> Effect:
    site.conv.weight.data.mul_(2)
    return site.put(site.new)


def counts_what_it_did_not_do(site: Site) -> Effect:
    return site.put(site.conv)


def leaves_a_module_of_its_own(site: Site) -> Effect:
    site.new.__class__ = Strange
    return site.put(site.new)


def computes_in_another_type(site: Site) -> Effect:
    site.before(site.node, Tensor.double)
    site.before(site.reader, Tensor.float)
    return site.put(site.new.double())


def tells_a_false_origin(site: Site) -> Effect:
    site.edit.record_origin("conv0.weight", Origin("conv0.weight", {0: torch.arange(3)}))
    return site.put(_filled(site.new, 0.1))


def copies_a_unit_with_equal_shares(site: Site) -> Effect:
    site.new.weight.data[1], site.new.bias.data[1] = site.new.weight[0].clone(), site.new.bias[0].clone()
    site.new_reader.weight.data[:, 1] = site.new_reader.weight[:, 0].clone()
    return site.put(site.new, site.new_reader)


def zeroes_both_layers(site: Site) -> Effect:
    return site.put(_filled(site.new, 0.0), _filled(site.new_reader, 0.0))


def freezes_a_layer(site: Site) -> Effect:
    return site.put(site.new.requires_grad_(requires_grad=False))


def draws_other_tensors_each_time(site: Site) -> Effect:
    return site.put(_filled(site.new, next(runs)))


def keeps_the_batch_as_a_constant(site: Site) -> Effect:
    site.before(site.reader, torch.narrow, 0, 0, site.edit.program.examples.batch)
    return Effect.LOSSY


def is_exact_on_the_examples_alone(site: Site) -> Effect:
    far = float(site.edit.program.examples.tensors[0].abs().max())
    site.before(site.node, F.hardtanh, -far, far)
    return Effect.EXACT


def differs_in_train_mode(site: Site) -> Effect:
    site.put(None, nn.Sequential(site.new_reader, nn.RReLU(0.5, 1.5)))
    return Effect.EXACT


def shares_memory(site: Site) -> Effect:
    site.new.bias = nn.Parameter(site.conv.bias.data[:])
    nn.init.zeros_(site.new.weight)
    return site.put(site.new)


runs = itertools.count(1)
FAULTS = {
    fault.__name__: (fault, caught)
    for fault, caught in (
        (nothing, "no refusal says why"),
        (writes_to_the_input, "the input was changed: conv0.weight"),
        (counts_what_it_did_not_do, "nothing differs"),
        (leaves_a_module_of_its_own, "conv0 is a .*Strange"),
        (computes_in_another_type, "is torch.float64"),
        (tells_a_false_origin, "its origin says"),
        (copies_a_unit_with_equal_shares, "units 0 and 1 of conv0 stay equal"),
        (zeroes_both_layers, "no gradient reaches conv"),
        (freezes_a_layer, "conv0.weight has requires_grad=False"),
        (shares_memory, "conv0.bias is a view of conv0.bias"),
        (draws_other_tensors_each_time, "replays to something else: conv0.bias, conv0.weight"),
        (keeps_the_batch_as_a_constant, "at batch 1 the result does not run"),
        (is_exact_on_the_examples_alone, "on new inputs outputs differ"),
        (differs_in_train_mode, "in training outputs differ"),
    )
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_broken_promise_is_caught_by_name(how: str):
    with torch.random.fork_rng(), pytest.raises((AssertionError, SurgeryError), match=FAULTS[how][1]):
        check(PLAIN.program(), [Faulty(how)])


@pytest.mark.parametrize(
    ("units", "caught"),
    [
        ({"conv0": [1, 2], "twin": [3]}, "two channel groups of one name"),
        ({"conv0": [0]}, "the first unit of conv0 cannot be named"),
    ],
)
def test_groups_that_are_none_are_caught(units: dict[str, list[int]], caught: str, monkeypatch: pytest.MonkeyPatch):
    groups = tuple(ChannelGroup("conv0", (name,), np.array(ids)) for name, ids in units.items())
    monkeypatch.setattr(promises, "structure", lambda program: replace(structure(program), groups=groups))
    with pytest.raises(AssertionError, match=caught):
        check(PLAIN.program(), ["prune-channels(drop=(('conv0', (3,)),))"])


def test_a_unit_that_takes_others_with_it_is_caught(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Structure, "empty_dims", lambda *_: [1, 2])
    trial = Trial(start := PLAIN.program(), FoldBn(), FoldBn()(start))
    with pytest.raises(AssertionError, match="the first unit of conv0 takes others with it"):
        promises.structure_is_analyzed(trial)


def test_weights_that_are_torn_apart_are_caught():
    @dataclass(frozen=True)
    class Tears(Rewrite):
        name: ClassVar[str] = "tears"

        def rewrite(self, edit: Editor) -> Effect:
            for node, conv in edit.program.calls(nn.Conv2d):
                edit.replace_module(str(node.target), _filled(_like(conv), 0.1))
            return Effect.LOSSY

    with pytest.raises(AssertionError, match=r"conv0.weight and tied1.weight were one tensor"):
        check(Graph((4, 8, 8), (Conv(0, 4), Tied(1, 1)), (Head((2,)),)).program(), [Tears()])


def test_a_spec_that_does_not_read_back_is_caught():
    @dataclass(frozen=True)
    class Grows(Rewrite):
        """Its text reads back as one more."""

        name: ClassVar[str] = "grows"
        by: int = 0

        def __post_init__(self) -> None:
            object.__setattr__(self, "by", self.by + 1)

        def rewrite(self, edit: Editor) -> Effect:
            edit.refuse("output", "never")
            return Effect.EXACT

    with pytest.raises(AssertionError, match="reads back as"):
        check(PLAIN.program(), [Grows()])


def test_a_crash_is_named_with_the_passes_before_it():
    @dataclass(frozen=True)
    class Crasher(Rewrite):
        name: ClassVar[str] = "crasher"

        def rewrite(self, edit: Editor) -> Effect:
            raise ZeroDivisionError("oops")

    with pytest.raises(PassCrashedError, match="oops") as caught:
        check(PLAIN.program(), ["prune-channels(drop=(('conv0', (3,)),))", Crasher()])
    assert re.search("crasher, after .*prune-channels", caught.value.__notes__[0])


def test_a_pass_of_a_stranger_is_registered_for_the_check_alone():
    @dataclass(frozen=True)
    class Slow(Rewrite):
        """Takes the first batch norm's momentum to one half."""

        name: ClassVar[str] = "slow-norm"
        trains: ClassVar[Trains] = Trains.NO

        def rewrite(self, edit: Editor) -> Effect:
            for node, norm in edit.program.calls(nn.BatchNorm2d):
                new = nn.BatchNorm2d(norm.num_features, momentum=0.5)
                new.load_state_dict(norm.state_dict())
                edit.replace_module(str(node.target), new)
                return Effect.EXACT
            edit.refuse("output", "there is no batch norm")
            return Effect.EXACT

    graph = Graph((3, 8, 8), (Conv(0, 4), Norm(1), Act(2)), (Head((3,)),))
    after = check(graph.program(), [Slow(), "fold-bn"])
    assert after.log == ("slow-norm", "fold-bn")
    assert "slow-norm" not in ALL
    with pytest.raises(SpecError):
        parse("slow-norm")
    with registered(Slow):
        assert parse("slow-norm") == Slow()


def test_a_graph_prints_as_what_makes_it_again():
    graph = Graph(
        (3, 8, 8), (Conv(0, 4, stride=2), Norm(1, "group"), Chunk(2, (1, 3)), Join(4, 4, "*")), (Head((5,)),), 2
    )
    shown = repr(graph)
    assert shown == (
        "Graph((3, 8, 8), (Conv(0, 4, stride=2), Norm(1, kind='group'), Chunk(2, cut=(1, 3)), Join(4, 4, how='*')), "
        "(Head((5,)),), seed=2)"
    )
    assert eval(shown) == graph


def test_a_graph_may_be_frozen_in_part_and_of_another_type():
    graph = Graph((3, 8, 8), (Conv(0, 4), Act(1), Conv(2, 4)), (Head((3,)),), dtype="float64", frozen=(1,))
    model = graph.program().graph_module
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"conv0.weight", "conv0.bias"}


def test_a_graph_builds_the_same_model_each_time_and_leaves_the_random_state_alone():
    graph = Graph((3, 8, 8), (Conv(0, 4), Norm(1, "instance"), Conv(2, 4), Again(3, 3), Tied(4, 3)), (Head((5, 1)),))
    state = torch.get_rng_state()
    first, second = graph.module().state_dict(), graph.module().state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in nonempty(first))
    program = graph.program()
    assert isinstance(program, Program)
    assert sum(n.target == "conv2" for n in program.nodes) == 2
    model = program.graph_module
    assert model.tied4.weight is model.conv2.weight


def test_a_case_is_cut_down_to_what_it_needs():
    steps = (Conv(0, 6, stride=2), Norm(1, "group"), Act(2), Chunk(3), Join(4, 5), Conv(6, 8, bias=False), Tied(3, 1))
    graph = Graph((6, 8, 8), steps, (Head((7, 8), hidden=(8,)), Head((2,), "map")), seed=3)
    least = smaller(graph, lambda g: any(isinstance(step, Chunk) for step in g.steps))
    assert least == Graph((6, 8, 8), (Chunk(0),), (Head((1,)),))
