"""Every importance against a slow one: what is gone from the weights once a unit is really pruned."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from analysis.awkward import AWKWARD
from fxsurgery.analysis.importance import (
    bn_gamma,
    least_important,
    magnitude,
    norm_scales,
    over_their_mean,
    taylor,
    unit_sums,
)
from fxsurgery.analysis.structure import ChannelGroup, structure
from fxsurgery.capture import capture
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program
from fxsurgery.training import Recipe, Task, fit, sgd
from nonempty import nonempty
from programs import program
from zoo import lively

NETS = ["Residual", "DenseCat", "InvertedResidual", "Attention", "Grouped", "NoNorm", "LSTM", "tied language model"]


def distinct(name: str) -> Program:
    """A net in whose every parameter no value comes twice."""
    if name in AWKWARD:
        build, example, _ = AWKWARD[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = capture(build().eval(), example)
    else:
        start = program(name)
    model, generator = start.trainable_copy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(((order + 1) / (parameter.numel() + 1) * 0.8 - 0.37).reshape(parameter.shape))
    return start.with_weights(model)


def gone(start: Program, group: ChannelGroup, position: int) -> dict[str, Tensor]:
    """By parameter, which entries pruning that unit takes away."""
    after = dict(PruneChannels(((group.name, (position,)),))(start).program.graph_module.named_parameters())
    return {name: ~torch.isin(p.detach(), after[name]) for name, p in start.graph_module.named_parameters()}


def slowly(start: Program, amount: dict[str, Tensor]) -> dict[int, float]:
    """The sum of what goes, by unit."""
    found = dict[int, float]()
    for group in structure(start).groups:
        for position, unit in enumerate(group.units.tolist()):
            masks = gone(start, group, position)
            found[unit] = sum(float(amount[name].double()[masks[name]].sum()) for name in amount)
    return found


def assert_same(fast: np.ndarray, slow: dict[int, float]):
    assert slow
    np.testing.assert_allclose(fast[list(slow)], list(slow.values()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("order", [1.0, 2.0])
def test_magnitude_is_that_of_all_matrices_that_lose_the_unit(name: str, order: float):
    start = distinct(name)
    weights = {n: p.detach().abs() ** order for n, p in start.graph_module.named_parameters() if p.dim() > 1}
    assert_same(magnitude(start, order), slowly(start, weights))


@pytest.mark.parametrize("name", ["Residual", "DenseCat", "InvertedResidual", "Grouped", "NoNorm"])
def test_bn_gamma_is_the_mean_over_the_norms_that_lose_the_unit(name: str):
    start = distinct(name)
    norms = [f"{node.target}.weight" for node, _ in start.calls(_NormBase)]
    gammas = {n: p.detach().abs() for n, p in start.graph_module.named_parameters() if n in norms}
    total, count = slowly(start, gammas), slowly(start, {n: torch.ones_like(g) for n, g in gammas.items()})
    found = bn_gamma(start)
    for unit, many in nonempty(count.items()):
        assert np.isnan(found[unit]) if not many else found[unit] == pytest.approx(total[unit] / many)


def gradients(start: Program) -> nn.Module:
    """A copy that holds the gradients of some loss."""
    model = start.trainable_copy()
    loss = torch.stack([(t.double() ** 2).mean() for t in outputs(model, start)]).sum()
    loss.backward()
    return model


def outputs(model: nn.Module, start: Program) -> list[Tensor]:
    given = model(*start.examples.args, **start.examples.kwargs)
    return [given] if isinstance(given, Tensor) else [t for t in given if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", NETS)
def test_taylor_is_the_derivative_of_what_loses_the_unit(name: str):
    start = distinct(name)
    model = gradients(start)
    products = {n: (p * p.grad).detach() for n, p in model.named_parameters()}
    assert_same(taylor(start, model), {unit: abs(total) for unit, total in slowly(start, products).items()})


def squares(model: nn.Module, start: Program) -> float:
    with torch.no_grad():
        return float(sum((t**2).mean() for t in outputs(model, start)))


@pytest.mark.parametrize("name", ["Residual", "Attention"])
def test_taylor_agrees_with_shrinking_a_unit_a_little(name: str):
    start = distinct(name).in_double()
    found = taylor(start, gradients(start))
    for group in nonempty(structure(start).groups):
        for position, unit in nonempty(enumerate(group.units.tolist())):
            model, step = start.trainable_copy(), 1e-6
            before = squares(model, start)
            with torch.no_grad():
                for path, mask in gone(start, group, position).items():
                    model.get_parameter(path)[mask] *= 1 - step
            assert abs(squares(model, start) - before) / step == pytest.approx(found[unit], rel=1e-3, abs=1e-6)


def test_taylor_ranks_units_as_zeroing_them_does():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=generator)
    y = (x[:, :4].square().sum(1) > x[:, 4:].abs().sum(1)).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = capture(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2)).eval(), x[:2])
    model = start.trainable_copy()
    fit(model, Task.of((x, y), (x, y), batch_size=64), Recipe(steps=150, optimizer=sgd(0.1)))
    trained = start.with_weights(model)
    [group] = structure(trained).groups
    importance = np.zeros(structure(trained).size)
    for number in range(16):
        copy, some = trained.trainable_copy(), slice(32 * number, 32 * number + 32)
        nn.functional.cross_entropy(copy(x[some]), y[some]).backward()
        importance += taylor(trained, copy)
    changes = list[float]()
    for position in range(24):
        less = trained.trainable_copy()
        with torch.no_grad():
            less.get_submodule("2").weight[:, position] = 0.0
            changes.append(float(nn.functional.cross_entropy(less(x), y)))
    assert spearmanr(importance[group.units], changes).statistic > 0.8


def test_an_entry_that_a_unit_has_twice_counts_once():
    """The recurrent matrix both makes and reads each hidden unit: the diagonal lies in row and column."""
    build, example, _ = AWKWARD["LSTM"]
    start = capture(build().eval(), example)
    ones = {"layer.weight_hh_l0": torch.ones_like(start.graph_module.get_parameter("layer.weight_hh_l0"))}
    hidden = ones["layer.weight_hh_l0"].shape[1]
    group = structure(start).named("layer")
    assert unit_sums(start, ones)[group.units].tolist() == [4 * hidden + 4 * hidden - 4] * hidden


def test_over_their_mean_every_group_has_the_mean_one():
    start = program("Residual")
    groups = structure(start).groups
    scaled = over_their_mean(magnitude(start), groups)
    for group in groups:
        assert scaled[group.units].mean() == pytest.approx(1.0)
        before = magnitude(start)[group.units]
        assert np.argsort(before).tolist() == np.argsort(scaled[group.units]).tolist()


def test_a_group_of_zeros_stays_zero_over_its_mean():
    start = program("NoNorm")
    scaled = over_their_mean(np.zeros(structure(start).size), structure(start).groups)
    assert not scaled.any()


def test_channels_of_the_smallest_scale_go_first_and_by_the_next_layer_where_there_is_no_norm():
    model = lively(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -0.1, 0.5, -0.2, 0.9, 0.05, -0.7, 0.3]))
        model[4].weight[:, [2, 6]] = 0.001
    start = capture(model.eval(), torch.randn(2, 3, 4, 4))
    first, second = structure(start).groups
    assert least_important(start, first, 3) == (1, 3, 5)
    assert least_important(start, second, 2) == (2, 6)
    assert not torch.isfinite(torch.from_numpy(norm_scales(start)[second.units])).any()
    assert next(iter(PruneChannels.candidates(start))).drop == (("0", (1, 5)),)
