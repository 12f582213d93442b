"""`elasticize`: nothing changes at the largest, and every choice does what it says."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.nn.elastic import ElasticSpace, KernelMatrices, Subnet, UnitMask, activate, elastic_space, is_largest
from fxsurgery.passes import Elasticize
from fxsurgery.program import Program
from fxsurgery.surgery import Effect
from nonempty import nonempty
from passes.supernets import IMAGE, OFA, distance, ofa, running
from programs import program
from zoo import lively


def changed(start: Program, model: nn.Module) -> Program:
    return capture(model.eval(), *start.example_inputs)


def test_a_supernet_has_the_choices_of_its_blocks():
    result = Elasticize(widths=(0.5, 1.0), inner_only=True)(ofa())
    assert (result.effect, result.error) == (Effect.EXACT, 0.0)
    space = elastic_space(result.program)
    assert space.depths == (("stage1.1.expand.0", (1, 2, 3)), ("stage2.1.expand.0", (1, 2)))
    assert dict(space.kernels) == {
        "stage1.0.depthwise.0": (3, 5),
        **{f"stage1.{n}.depthwise.0": (3, 5, 7) for n in (1, 2, 3)},
        **{f"stage2.{n}.depthwise.0": (3, 5) for n in (1, 2)},
    }
    expanded = {f"stage1.{n}.expand.0": (8, 16) for n in range(4)} | {"stage2.0.expand.0": (8, 16)}
    expanded |= {f"stage2.{n}.expand.0": (12, 24) for n in (1, 2)}
    squeezed = {f"stage{s}.{n}.squeeze": (2, 4) for s, n in ((1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2))}
    # The stem's channels are read by a block without a shortcut: they are no stream.
    assert dict(space.widths) == expanded | squeezed | {"stem.0": (2, 4)}
    assert space.size == 2**15 * 3 * 2 * 2 * 3**3 * 2**2


def test_weights_are_inherited_under_their_names():
    start = ofa()
    before, after = start.graph_module.state_dict(), Elasticize()(start).program.graph_module.state_dict()
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in nonempty(before))
    assert all("fxsurgery_" in name for name in nonempty(after.keys() - before.keys()))


def test_the_order_of_the_units_travels_with_the_weights():
    start = program("Plain")
    supernet, other = (Elasticize()(start).program.trainable_copy() for _ in range(2))
    with torch.no_grad():
        other.get_parameter("body.4.weight").neg_()
        for module in other.modules():
            if isinstance(module, UnitMask):
                module.place.copy_(module.place.flip(0))
    supernet.load_state_dict(other.state_dict())
    activate(supernet, elastic_space(start.with_weights(supernet)).smallest)
    activate(other, elastic_space(start.with_weights(other)).smallest)
    assert torch.equal(supernet(*start.example_inputs), other(*start.example_inputs))


def test_the_most_important_units_by_what_the_next_layer_weighs_them_stay():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3))).eval()
    start = capture(model, IMAGE)
    supernet = Elasticize(widths=(0.25, 0.5, 1.0))(start).program
    assert elastic_space(supernet).widths == (("0", (2, 4, 8)),)
    for count in (2, 4):
        order = sorted(range(8), key=lambda c: -model[3].weight[:, c].abs().sum().item())
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[3].weight[:, order[count:]] = 0
        sliced = running(supernet, Subnet(widths=(("0", count),)))
        assert distance(sliced, changed(start, other)) < 1e-6
        assert distance(sliced, start) > 1e-2


def test_a_concatenation_keeps_the_width_of_each_of_its_parts():
    supernet = Elasticize(widths=(0.5, 1.0))(program("DenseCat")).program
    model = supernet.trainable_copy()
    activate(model, Subnet(widths=(("stem", 3), ("conv2", 2))))
    [mask] = [m for m in model.modules() if isinstance(m, UnitMask) and len(m.groups) == 3]
    on = mask.place < mask.limit
    assert [int(on[a:b].sum()) for a, b in ((0, 6), (6, 10), (10, 14))] == [3, 4, 2]


def test_widths_are_aligned_and_a_narrow_group_keeps_its_own():
    space = elastic_space(Elasticize(widths=(0.25, 0.5), align=4)(program("Plain")).program)
    assert space.widths == (("body.0", (4, 8)), ("body.4", (4, 8, 12)))
    result = Elasticize(widths=(0.5,), align=12)(program("Plain"))
    assert result.changes == 0
    assert {r.reason for r in result.refusals} == {
        "its 8 units allow a single width only",
        "its 12 units allow a single width only",
    }


def test_a_stage_keeps_its_first_blocks():
    start = ofa()
    supernet = Elasticize()(start).program
    for kept in (1, 2):
        other = start.trainable_copy()
        with torch.no_grad():
            for block in range(1 + kept, 4):  # a projection norm of scale and offset 0 is a branch of 0
                getattr(other.stage1, str(block)).project.get_submodule("1").weight.zero_()
                getattr(other.stage1, str(block)).project.get_submodule("1").bias.zero_()
        sliced = running(supernet, Subnet(depths=(("stage1.1.expand.0", kept),)))
        assert distance(sliced, start.with_weights(other)) < 1e-6
        assert distance(sliced, start) > 1e-3


def test_no_gradient_reaches_what_is_off():
    supernet = Elasticize()(ofa()).program
    model = supernet.trainable_copy().train()
    activate(model, elastic_space(supernet).smallest)
    model(IMAGE).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(nonempty(grads[n] is None for n in grads if n.startswith(("stage1.3.", "stage1.2.", "stage2.2."))))
    expanded = grads["stage1.1.expand.0.weight"].flatten(1).abs().sum(1)
    assert int((expanded > 0).sum()) == 8  # of 16
    outside = grads["stage1.1.depthwise.0.weight"].clone()
    outside[:, :, 2:5, 2:5] = 0
    assert not outside.any()
    matrices = [m for m in model.modules() if isinstance(m, KernelMatrices) and m.conv == "stage1.1.depthwise.0"]
    assert [tuple(p.shape) for p in matrices[0].parameters()] == [(25, 25), (9, 9)]
    assert all(p.grad.any() for p in nonempty(matrices[0].parameters()))


CONVS = {
    "depthwise": nn.Conv2d(6, 6, 7, padding=3, groups=6),
    "strided": nn.Conv2d(6, 4, 7, stride=2, padding=3, bias=False),
    "dilated": nn.Conv2d(6, 4, 5, padding=4, dilation=2),
    "oblong": nn.Conv2d(6, 4, (1, 7), padding=(0, 3)),
    "same": nn.Conv2d(6, 4, 5, padding="same"),
    "reflect": nn.Conv2d(6, 4, 7, padding=3, padding_mode="reflect"),
    "circular same": nn.Conv2d(6, 4, 7, padding="same", padding_mode="circular"),
    "grouped": nn.Conv2d(6, 4, 5, stride=2, padding=2, groups=2),
    "1d": nn.Conv1d(6, 4, 7, padding=3),
    "3d": nn.Conv3d(6, 4, 5, padding=2),
}


@pytest.mark.parametrize("name", CONVS)
def test_a_smaller_kernel_is_the_center_among_zeros(name: str):
    conv = CONVS[name]
    images = torch.randn(2, 6, *[10] * (conv.weight.dim() - 2), generator=torch.Generator().manual_seed(0))
    start = capture(nn.Sequential(copy.deepcopy(conv)).eval(), images)
    supernet = Elasticize()(start).program
    [(path, sizes)] = elastic_space(supernet).kernels
    assert sizes == tuple(range(3, max(conv.kernel_size) + 1, 2))
    for size in nonempty(sizes[:-1]):
        other = nn.Sequential(copy.deepcopy(conv))
        cut = tuple(slice((side - min(side, size)) // 2, (side + min(side, size)) // 2) for side in conv.kernel_size)
        with torch.no_grad():
            other[0].weight.zero_()[(..., *cut)] = conv.weight[(..., *cut)]
        assert distance(running(supernet, Subnet(kernels=((path, size),))), changed(start, other)) < 1e-5


def test_the_center_goes_through_learned_matrices():
    conv = nn.Conv2d(2, 3, 7, padding=3)
    supernet = Elasticize()(capture(nn.Sequential(conv).eval(), torch.randn(1, 2, 9, 9))).program
    model = supernet.trainable_copy()
    [matrices] = [m for m in model.modules() if isinstance(m, KernelMatrices)]
    first, second = matrices.parameters()
    with torch.no_grad():
        for parameter in (first, second):
            assert torch.equal(parameter, torch.eye(len(parameter)))
            parameter.copy_(torch.randn(parameter.shape))
        fives = (conv.weight[..., 1:6, 1:6].reshape(3, 2, 25) @ first).reshape(3, 2, 5, 5)
        threes = (fives[..., 1:4, 1:4].reshape(3, 2, 9) @ second).reshape(3, 2, 3, 3)
        for size, weight in ((5, fives), (3, threes)):
            activate(model, Subnet(kernels=(("0", size),)))
            images = torch.randn(2, 2, 9, 9)
            wanted = F.conv2d(images, weight, conv.bias, padding=size // 2)
            assert relative_error(model(images), wanted) < 1e-5


class Twice(nn.Module):
    """One large kernel, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


def test_a_conv_called_twice_is_of_one_size():
    start = capture(Twice().eval(), IMAGE)
    supernet = Elasticize()(start).program
    other = Twice()
    other.load_state_dict(start.graph_module.state_dict())
    with torch.no_grad():
        for edge in (0, 4):
            other.conv.weight[:, :, edge] = 0
            other.conv.weight[:, :, :, edge] = 0
    assert distance(running(supernet, Subnet(kernels=(("conv", 3),))), changed(start, other)) < 1e-5


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), nn.ReLU(), nn.Conv2d(3, 3, 5, padding=2))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 4, padding=2)), "a kernel of 4x4 has no center"),
        (nn.Sequential(nn.Conv2d(3, 4, 5)), "it pads too little for a smaller kernel to see the same places"),
        (nn.Sequential(nn.Conv2d(3, 4, 7, padding="valid")), "it pads too little for a smaller kernel"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 5, padding=2))), "other tensors"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 5)), "a ConvTranspose2d is not known to take the center"),
        (tied(), "its weight is shared with another layer"),
    ],
)
def test_a_kernel_that_must_stay_is_refused_with_the_reason(model: nn.Module, reason: str):
    result = Elasticize(widths=())(capture(model.eval(), IMAGE))
    assert result.changes == 0
    assert all(reason in refusal.reason for refusal in nonempty(result.refusals))
    assert result.refusals


def test_padding_limits_how_small_a_kernel_gets():
    start = capture(nn.Sequential(nn.Conv2d(3, 4, 11, stride=4, padding=2)).eval(), torch.randn(1, 3, 32, 32))
    assert elastic_space(Elasticize()(start).program).kernels == (("0", (7, 9, 11)),)


def test_a_norm_over_channels_keeps_their_width():
    result = Elasticize()(program("GroupNormNet"))
    assert elastic_space(result.program).widths == (("a", (2, 3, 4)),)
    assert [(r.node, "a norm runs over them" in r.reason) for r in result.refusals] == [("b", True)]


def test_each_kind_can_be_left_out():
    start = ofa()
    spaces = [elastic_space(p(start).program) for p in (Elasticize(widths=()), Elasticize(depth=False, kernel=False))]
    assert [bool(s.widths) for s in spaces] == [False, True]
    assert [bool(s.depths) for s in spaces] == [bool(s.kernels) for s in spaces] == [True, False]


def test_a_block_that_stands_alone_can_go_when_nothing_has_to_stay():
    spaces = [elastic_space(Elasticize(shallowest=n)(program("Residual")).program) for n in (0, 1)]
    assert [s.depths for s in spaces] == [(("conv1", (0, 1)),), ()]


def test_a_supernet_is_not_made_elastic_again():
    once = Elasticize()(program("Plain")).program
    again = Elasticize()(once)
    assert again.program is once
    assert [r.reason for r in again.refusals] == ["the program is a supernet already"]
    assert list(Elasticize.candidates(once)) == []


def test_nothing_to_do_is_said():
    result = Elasticize()(capture(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), IMAGE))
    assert result.changes == 0
    assert "nothing can be elastic" in result.refusals[0].reason


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"widths": (0.5, 1.5)}, "1.5"),
        ({"widths": (0.0,)}, "0.0"),
        ({"align": 0}, "align"),
        ({"shallowest": -1}, "at least 0"),
    ],
)
def test_options_without_meaning_are_errors(options: dict, word: str):
    with pytest.raises(SpecError, match=word):
        Elasticize(**options)(program("Plain"))


def test_configurations_are_drawn_uniformly_and_the_same_every_time():
    space = elastic_space(Elasticize()(ofa()).program)
    draws = [[space.sample(g) for _ in range(300)] for g in map(torch.Generator().manual_seed, (0, 0))]
    assert draws[0] == draws[1]
    for kind in ("widths", "depths", "kernels"):
        for position, (_, options) in nonempty(enumerate(getattr(space, kind))):
            counts = [sum(getattr(d, kind)[position][1] == o for d in draws[0]) for o in options]
            assert min(counts) > 0.7 * 300 / len(options)


def test_activating_leaves_the_program_alone_and_goes_back():
    supernet = Elasticize()(ofa()).program
    model = supernet.trainable_copy()
    activate(model, elastic_space(supernet).smallest)
    assert not is_largest(model)
    assert is_largest(supernet.graph_module)
    small = model(IMAGE)
    activate(model, Subnet())
    assert is_largest(model)
    assert torch.equal(model(IMAGE), supernet(IMAGE))
    assert relative_error(small, model(IMAGE)) > 1e-2


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        (Subnet(widths=(("nope", 4),)), "no elastic width is named 'nope'; there are: body.0, body.4"),
        (Subnet(widths=(("body.0", 5),)), "body.0 cannot take a width of 5; it takes 4, 6, 8"),
        (Subnet(kernels=(("body.0", 3),)), "no elastic kernel is named 'body.0'; there are: none"),
    ],
)
def test_a_configuration_that_there_is_not_is_an_error(subnet: Subnet, message: str):
    supernet = Elasticize()(program("Plain")).program
    with pytest.raises(SpecError, match=message):
        activate(supernet.trainable_copy(), subnet)


def test_any_other_program_has_an_empty_space():
    assert elastic_space(program("Plain")) == ElasticSpace()
    assert elastic_space(program("Plain")).size == 1


def test_a_supernet_keeps_the_type_of_its_model():
    start = capture(OFA().double().eval(), IMAGE.double())
    supernet = Elasticize()(start).program
    assert {p.dtype for p in supernet.graph_module.parameters()} == {torch.float64}
    assert supernet.run_examples()[0].dtype == torch.float64
