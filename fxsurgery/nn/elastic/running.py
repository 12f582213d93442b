"""Reading the choices of a supernet, and activating one configuration."""

from torch import nn

from fxsurgery.nn.elastic.kernels import KernelMatrices
from fxsurgery.nn.elastic.space import ElasticSpace, Subnet
from fxsurgery.nn.elastic.switches import BlockSwitch, UnitMask
from fxsurgery.program import Program


def elastic_space(supernet: Program | nn.Module) -> ElasticSpace:
    """Return the choices of a supernet in the order in which they were created; empty for any other program."""
    root = supernet.graph_module if isinstance(supernet, Program) else supernet
    widths, depths, kernels = dict[str, tuple[int, ...]](), dict[str, tuple[int, ...]](), dict[str, tuple[int, ...]]()
    for module in root.modules():
        if isinstance(module, UnitMask):
            widths.update(module.groups)
        elif isinstance(module, BlockSwitch):
            depths[module.stage] = module.options
        elif isinstance(module, KernelMatrices):
            kernels[module.conv] = tuple(max(size) for size in reversed(module.sizes))
    return ElasticSpace(*(tuple(found.items()) for found in (widths, depths, kernels)))


def is_largest(supernet: nn.Module) -> bool:
    """Return True if a supernet runs in its largest configuration, the only one whose structure can be analyzed."""
    for module in supernet.modules():
        if isinstance(module, UnitMask) and not bool((module.place < module.limit).all()):
            return False
        if isinstance(module, BlockSwitch) and not module.is_on:
            return False
        if isinstance(module, KernelMatrices) and module.size != module.sizes[0]:
            return False
    return True


def activate(supernet: nn.Module, subnet: Subnet) -> None:
    """Activate one configuration of a supernet, without writing to any parameter.

    Args:
        supernet: a trainable copy of a program that `elasticize` created.
        subnet: the configuration; choices that it does not name are set to their largest option.

    Raises:
        SpecError: `subnet` names a choice or option that the supernet does not have.
    """
    full = elastic_space(supernet).complete(subnet)
    widths, depths, kernels = dict(full.widths), dict(full.depths), dict(full.kernels)
    for module in supernet.modules():
        if isinstance(module, UnitMask):
            module.set_widths(widths)
        elif isinstance(module, BlockSwitch):
            module.is_on = module.position < depths[module.stage]
        elif isinstance(module, KernelMatrices):
            module.size = next(size for size in module.sizes if max(size) == kernels[module.conv])
