"""Modules in the graph of a supernet that switch units, blocks and kernel sizes off (SparseNAS, section 4).

    width    `UnitMask`      x * [place < limit]     at the input of each mixing consumer, like gates
    depth    `BlockSwitch`   x + f(x)  or  x + 0     on the branch of a residual block
    kernel   `ElasticConv`   the center of its weight W, times a learned matrix:
                             W5 = center(W7) M75 (25 x 25),  W3 = center(W5) M53 (9 x 9),  M = 1 at the start

A `Subnet` selects one configuration, and `activate` applies it. A supernet starts at its largest configuration, which
computes the same as the original program. Each module stores its own choices, so a supernet needs no registry.
"""

from fxsurgery.nn.elastic.kernels import ELASTIC_CONVS, ElasticConv, KernelMatrices, Size, center, margins
from fxsurgery.nn.elastic.running import activate, elastic_space, is_largest
from fxsurgery.nn.elastic.space import Choices, ElasticSpace, Picks, Subnet
from fxsurgery.nn.elastic.switches import BlockSwitch, UnitMask

ELASTIC = "fxsurgery_elastic"
"""Name of the submodule that contains these modules; elastic convolutions stay in place."""

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
    "is_largest",
    "margins",
]
