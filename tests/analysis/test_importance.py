import torch
from torch import nn

from fxsurgery.analysis.importance import least_important, norm_scales
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.passes import PruneChannels
from zoo import lively


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
