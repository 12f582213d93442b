"""What stands in the graph of a supernet: units, blocks and kernels that can be switched off (SparseNAS, section 4).

    width    `UnitMask`      x * [place < limit]     at the input of each mixing consumer, as gates are
    depth    `BlockSwitch`   x + f(x)  or  x + 0     on the branch of a residual block
    kernel   `ElasticConv`   the center of its weight W, times a learned matrix:
                             W5 = center(W7) M75 (25 x 25),  W3 = center(W5) M53 (9 x 9),  M = 1 at the start

A `Subnet` says which are on, and `activate` makes it so; all begin at their largest, where the supernet computes
what the program before did. Each module knows the choices that it takes part in, so a supernet needs no register.
"""

from fxsurgery.nn.elastic.kernels import ELASTIC_CONVS, ElasticConv, KernelMatrices, Size, center, margins
from fxsurgery.nn.elastic.running import activate, elastic_space, is_whole
from fxsurgery.nn.elastic.space import Choices, ElasticSpace, Picks, Subnet
from fxsurgery.nn.elastic.switches import BlockSwitch, UnitMask

ELASTIC = "fxsurgery_elastic"
"""Where these modules are kept in the model; the convs stay where they were."""

__all__ = [
    "ELASTIC",
    "ELASTIC_CONVS",
    "BlockSwitch",
    "Choices",
    "ElasticConv",
    "ElasticSpace",
    "KernelMatrices",
    "Picks",
    "Size",
    "Subnet",
    "UnitMask",
    "activate",
    "center",
    "elastic_space",
    "is_whole",
    "margins",
]
