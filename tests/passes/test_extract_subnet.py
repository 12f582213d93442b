"""`extract-subnet`: a plain network that equals the slice of the supernet, now and while both train."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.nn.elastic import KernelMatrices, Subnet, activate, elastic_space, is_largest
from fxsurgery.passes import Elasticize, ExtractSubnet, FoldBn, InsertGates, PruneChannels, replay
from fxsurgery.program import Program
from fxsurgery.surgery import Effect
from nonempty import nonempty
from passes.supernets import IMAGE, distance, ofa, running
from programs import program
from zoo import ZOO, lively


def supernet() -> Program:
    return Elasticize(widths=(0.25, 0.5, 1.0))(ofa()).program


def some(start: Program, count: int = 4) -> list[Subnet]:
    """The smallest, the largest, and random ones between them."""
    space, generator = elastic_space(start), torch.Generator().manual_seed(0)
    return [space.smallest, *(space.sample(generator) for _ in range(count)), space.largest]


def is_plain(model: nn.Module) -> bool:
    names = [*model.state_dict(), *(name for name, _ in model.named_modules())]
    kinds = [type(m).__module__ for name, m in model.named_modules() if name]
    return not any("fxsurgery" in text for text in (*names, *kinds))


def steps(start: Program, count: int = 3, seed: int = 5, rate: float = 0.05) -> Program:
    """`start` after SGD steps in train mode on the user's parameters: not those of the supernet's machinery."""
    model = start.trainable_copy().train()
    own = [p for n, p in model.named_parameters() if "fxsurgery_" not in n]
    optimizer, generator = torch.optim.SGD(own, lr=rate, momentum=0.9), torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randn(IMAGE.shape, generator=generator)
        optimizer.zero_grad()
        (model(images) - torch.linspace(-1, 1, 10)).square().mean().backward()
        optimizer.step()
    return start.with_weights(model)


def trained_in_samples(start: Program, count: int = 6) -> Program:
    """A supernet after steps of SparseNAS's training: two random configurations a step, gradients summed."""
    model, space = start.trainable_copy().train(), elastic_space(start)
    optimizer, generator = torch.optim.SGD(model.parameters(), lr=0.05), torch.Generator().manual_seed(3)
    for _ in range(count):
        optimizer.zero_grad()
        for _ in range(2):
            activate(model, space.sample(generator))
            images = torch.randn(IMAGE.shape, generator=generator)
            (model(images) - torch.linspace(-1, 1, 10)).square().mean().backward()
        optimizer.step()
    activate(model, Subnet())
    return start.with_weights(model)


def test_an_extracted_net_is_plain_and_equals_the_slice():
    start = supernet()
    for subnet in nonempty(some(start)):
        result = ExtractSubnet.of(subnet)(start)
        assert is_plain(result.program.graph_module)
        assert result.effect is (Effect.EXACT if subnet == elastic_space(start).largest else Effect.LOSSY)
        assert result.error < 1e-5
        assert distance(result.program, running(start, subnet)) < 1e-5


def test_the_smallest_net_has_the_sizes_that_it_says():
    start = supernet()
    result = ExtractSubnet.of(elastic_space(start).smallest)(start).program
    modules = dict(result.graph_module.named_modules())
    assert modules["stem.0"].weight.shape == (1, 3, 3, 3)
    assert modules["stage1.1.expand.0"].weight.shape == (4, 1, 1, 1)
    assert modules["stage1.1.depthwise.0"].weight.shape == (4, 1, 3, 3)
    assert (modules["stage1.1.depthwise.0"].groups, modules["stage1.1.depthwise.0"].padding) == (4, (1, 1))
    assert modules["stage2.1.squeeze"].weight.shape == (1, 6, 1, 1)
    assert modules["head"].weight.shape == (10, 2)
    assert not any(name.startswith(("stage1.2", "stage1.3", "stage2.2")) for name in modules)
    assert cost(result).params == sum(p.numel() for p in result.graph_module.parameters())


def test_the_largest_net_is_the_program_before():
    start = ofa()
    back = ExtractSubnet()(Elasticize()(start).program)
    assert back.effect is Effect.EXACT
    assert distance(back.program, start) == 0.0
    state = back.program.graph_module.state_dict()
    assert {k: v.shape for k, v in nonempty(state.items())} == {
        k: v.shape for k, v in start.graph_module.state_dict().items()
    }
    assert [type(m) for m in back.program.graph_module.modules()][1:] == [
        type(m) for m in start.graph_module.modules()
    ][1:]


def test_it_still_equals_the_slice_after_the_supernet_has_trained():
    start = trained_in_samples(supernet())
    assert any(
        (p - torch.eye(len(p))).abs().max() > 1e-4
        for _, matrices in start.calls(KernelMatrices)
        for p in matrices.parameters()
    )
    for subnet in nonempty(some(start)):
        result, sliced = ExtractSubnet.of(subnet)(start), running(start, subnet)
        assert result.error < 1e-5
        got, wanted = (p.trainable_copy().train() for p in (result.program, sliced))
        assert relative_error(got(IMAGE), wanted(IMAGE)) < 1e-5
        assert distance(result.program.with_weights(got), sliced.with_weights(wanted)) < 1e-5  # norms' statistics


def test_the_same_steps_keep_net_and_slice_equal():
    start = supernet()
    for subnet in nonempty(some(start)):
        result, sliced = ExtractSubnet.of(subnet)(start).program, running(start, subnet)
        after = steps(result)
        assert distance(after, steps(sliced)) < 1e-4
        assert distance(after, result) > 1e-3


def test_the_same_steps_keep_them_equal_after_the_supernet_has_trained_widths_and_depths():
    start = trained_in_samples(Elasticize(kernel=False)(ofa()).program)
    for subnet in nonempty(some(start)):
        result, sliced = ExtractSubnet.of(subnet)(start).program, running(start, subnet)
        assert distance(steps(result), steps(sliced)) < 1e-4


@pytest.mark.parametrize("name", ZOO)
def test_zoo_nets_equal_their_slices_while_training(name: str):
    start = Elasticize(shallowest=0)(program(name)).program
    images = start.example_inputs[0]
    for subnet in nonempty(some(start, 2)):
        result, sliced = ExtractSubnet.of(subnet)(start), running(start, subnet)
        assert distance(result.program, sliced) < 1e-5
        states = []
        for model in (result.program.trainable_copy(), sliced.trainable_copy()):
            for module in model.train().modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
            for _ in range(3):
                optimizer.zero_grad()
                outputs = model(images)
                tuple_ = outputs if isinstance(outputs, tuple) else (outputs,)
                sum((o - torch.linspace(-1, 1, o.numel()).view_as(o)).square().mean() for o in tuple_).backward()
                optimizer.step()
            states.append(model.eval())
        assert distance(result.program.with_weights(states[0]), sliced.with_weights(states[1])) < 1e-4


class Transformer(nn.Module):
    """Blocks of attention and feed-forward part, whose shapes are computed and which share a mask."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(8), "qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8),
                    "norm2": nn.LayerNorm(8), "up": nn.Linear(8, 12), "down": nn.Linear(12, 8),
                }
            )
            for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        bias = x.mean(2)[:, None, None, :]
        for block in self.blocks:
            y = block["norm1"](x)
            batch, length, width = y.shape
            q, k, v = block["qkv"](y).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(batch, 1, length, length))
            x = x + block["proj"](y.transpose(1, 2).reshape(batch, length, width))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(x.mean(1))


def test_a_block_of_two_sums_leaves_as_one():
    words = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    start = Elasticize()(capture(lively(Transformer()).eval(), words)).program
    space = elastic_space(start)
    assert space.depths == (("blocks.0.norm1", (1, 2, 3)),)
    assert [options for _, options in space.widths] == [(1, 2), (6, 9, 12)] * 3  # heads, hidden units
    for subnet in nonempty(some(start)):
        result = ExtractSubnet.of(subnet)(start).program
        assert distance(result, running(start, subnet)) < 1e-5
        kept = dict(subnet.depths)["blocks.0.norm1"]
        assert sum(node.target is F.scaled_dot_product_attention for node in result.nodes) == kept
        assert {n.split(".")[1] for n in result.graph_module.state_dict() if n.startswith("blocks")} == {
            str(i) for i in nonempty(range(kept))
        }


class InPlace(nn.Module):
    """Residual sums written into the shortcut, activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1))
            for _ in range(3)
        )
        self.relu, self.head = nn.ReLU(inplace=True), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x += block(x)
            x = self.relu(x)
        return self.head(x)


def test_sums_in_place_are_skipped_as_well():
    start = Elasticize()(capture(lively(InPlace()).eval(), IMAGE)).program
    assert elastic_space(start).depths == (("blocks.0.0", (1, 2, 3)),)
    for subnet in nonempty(some(start)):
        assert distance(ExtractSubnet.of(subnet)(start).program, running(start, subnet)) < 1e-5


def test_an_elastic_conv_that_is_called_on_what_it_gave_itself():
    stem, conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, padding=2)
    start = Elasticize()(capture(lively(nn.Sequential(stem, conv, conv, conv)).eval(), IMAGE)).program
    assert elastic_space(start).kernels == (("1", (3, 5)),)
    for subnet in nonempty(some(start, 0)):
        result = ExtractSubnet.of(subnet)(start).program
        assert is_plain(result.graph_module)
        assert distance(result, running(start, subnet)) < 1e-5


class IntoBranch(nn.Module):
    """A residual sum that is written into the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).add_(x).relu()


def test_sums_written_into_the_branch_are_skipped_as_well():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), IntoBranch(), IntoBranch(), IntoBranch())
    start = Elasticize((1.0,))(capture(lively(model).eval(), IMAGE)).program
    for depth in (1, 2):
        subnet = Subnet(depths=(("1.conv", depth),))
        assert distance(ExtractSubnet.of(subnet)(start).program, running(start, subnet)) < 1e-6


class Overwriting(nn.Module):
    """A block whose sum is overwritten: by a module, a function or a method."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.act, self.way = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), way

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + x
        if self.way == "module":
            return self.act(y)
        return F.relu(y, inplace=True) if self.way == "function" else y.relu_()


@pytest.mark.parametrize("way", ["module", "function", "method"])
def test_what_overwrote_a_sum_leaves_the_shortcut_alone(way: str):
    """The way back of an activation needs the output that it gave."""
    blocks = [Overwriting(way) for _ in range(3)]
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), *blocks)).eval()
    start = Elasticize((1.0,))(capture(model, IMAGE)).program
    for depth in (1, 2):
        subnet = Subnet(depths=(("2.conv", depth),))
        result = ExtractSubnet.of(subnet)(start).program
        assert sum(1 for _ in result.calls(nn.Conv2d)) == 1 + depth
        assert distance(result, running(start, subnet)) < 1e-6
        model = result.trainable_copy().train()
        model(IMAGE).square().mean().backward()
        assert all(p.grad is not None for p in nonempty(model.parameters()))


def test_a_conv_called_twice_takes_its_new_size_in_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 5, padding=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.relu(self.conv(x)))

    start = Elasticize()(capture(Twice().eval(), IMAGE)).program
    subnet = Subnet(kernels=(("conv", 3),))
    result = ExtractSubnet.of(subnet)(start)
    assert result.program.graph_module.conv.weight.shape == (3, 3, 3, 3)
    assert distance(result.program, running(start, subnet)) < 1e-6


def test_what_is_not_named_is_at_its_largest():
    start = supernet()
    result = ExtractSubnet(kernels=(("stage1.1.depthwise.0", 5),))(start).program
    assert distance(result, running(start, Subnet(kernels=(("stage1.1.depthwise.0", 5),)))) < 1e-5
    sizes = {k: v.shape for k, v in ofa().graph_module.state_dict().items()}
    sizes["stage1.1.depthwise.0.weight"] = torch.Size((16, 1, 5, 5))
    assert {k: v.shape for k, v in result.graph_module.state_dict().items()} == sizes


def test_parameters_say_which_entries_of_the_supernet_they_are():
    start = supernet()
    result = ExtractSubnet.of(elastic_space(start).smallest)(start)
    before = dict(start.graph_module.named_parameters())
    for name, parameter in nonempty(result.program.graph_module.named_parameters()):
        wanted = before[name]
        if origin := result.origins.get(name):
            assert origin.name == name
            for dim, index in origin.index.items():
                wanted = wanted.index_select(dim, index)
        assert torch.equal(parameter, wanted)  # the matrices are the identity
    assert result.origins.keys() <= dict(result.program.graph_module.named_parameters()).keys()


def test_the_log_rebuilds_it():
    start = ofa()
    there = Elasticize()(start).program
    result = ExtractSubnet.of(some(there)[1])(there).program
    again = replay(result.log, start)
    assert again.text() == result.text()
    assert distance(again, result) == 0.0


def test_a_supernet_whose_channels_were_pruned_still_has_its_slices():
    start = supernet()
    pruned = PruneChannels((("stage1.1.expand.0", (0, 3, 9)), ("stem.0", (1,))))(start).program
    for subnet in nonempty(some(pruned)):
        result = ExtractSubnet.of(subnet)(pruned)
        assert result.error < 1e-5
        assert is_plain(result.program.graph_module)


def test_candidates_are_a_random_one_the_smallest_and_the_largest():
    start = supernet()
    space, moves = elastic_space(start), list(ExtractSubnet.candidates(start))
    assert len(moves) == 3
    assert [Subnet(m.widths, m.depths, m.kernels) for m in moves[1:]] == [space.smallest, space.largest]
    assert moves == list(ExtractSubnet.candidates(start))
    assert list(ExtractSubnet.candidates(ofa())) == []


def test_any_other_program_is_refused():
    start = program("Plain")
    result = ExtractSubnet()(start)
    assert result.program is start
    assert "not a supernet" in result.refusals[0].reason


def test_a_supernet_that_runs_smaller_is_refused():
    start = running(supernet(), some(supernet())[1])
    assert not is_largest(start.graph_module)
    result = ExtractSubnet()(start)
    assert result.program is start
    assert "does not run at its largest" in result.refusals[0].reason


def test_units_that_another_pass_has_tied_down_are_refused():
    start = InsertGates()(supernet()).program
    result = ExtractSubnet.of(elastic_space(start).smallest)(start)
    assert result.program is start
    assert "can no longer be removed" in result.refusals[0].reason


def test_a_supernet_with_folded_norms_still_has_its_slices():
    start = FoldBn()(supernet()).program
    for subnet in nonempty(some(start)):
        assert ExtractSubnet.of(subnet)(start).error < 1e-5


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (ExtractSubnet(widths=(("stem", 2),)), "no elastic width is named 'stem'; there are: stem.0, "),
        (ExtractSubnet(depths=(("stage1.1.expand.0", 0),)), "cannot take a depth of 0; it takes 1, 2, 3"),
        (ExtractSubnet(kernels=(("stage2.0.depthwise.0", 3),)), "no elastic kernel is named"),
    ],
)
def test_a_configuration_that_there_is_not_is_an_error(move: ExtractSubnet, message: str):
    with pytest.raises(SpecError, match=message):
        move(supernet())


def test_the_supernet_is_left_alone():
    start = supernet()
    state = copy.deepcopy(start.graph_module.state_dict())
    ExtractSubnet.of(elastic_space(start).smallest)(start)
    assert is_largest(start.graph_module)
    assert all(torch.equal(value, state[name]) for name, value in nonempty(start.graph_module.state_dict().items()))
