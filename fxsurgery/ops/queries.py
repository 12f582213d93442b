"""Operators that return Python values which do not depend on a tensor's entries: sizes, dtype, device."""

import builtins

import torch

from fxsurgery.ops.operator import Kind, Operator

SIZE = Operator(name="size", kind=Kind.QUERY, attributes=("shape",), extents="sizes")

STRIDE = Operator(name="stride", kind=Kind.QUERY)

DECLARED = (
    SIZE,
    STRIDE,
    Operator(name="numel", kind=Kind.QUERY, aliases=("nelement",), extents="count"),
    Operator(name="len", kind=Kind.QUERY, functions=(builtins.len,), methods=("__len__",), extents="first"),
    Operator(name="dim", kind=Kind.QUERY, aliases=("ndimension",), attributes=("ndim",), extents="rank"),
    Operator(name="assert", kind=Kind.QUERY, functions=(torch._assert,)),  # noqa: SLF001 -- called by size guards
    Operator(name="dtype", kind=Kind.QUERY, attributes=("dtype",), is_named=False),
    Operator(name="device", kind=Kind.QUERY, attributes=("device",), is_named=False),
    Operator(name="layout", kind=Kind.QUERY, attributes=("layout",), is_named=False),
    *(
        Operator(name=name, kind=Kind.QUERY)
        for name in "storage_offset element_size is_floating_point is_complex is_contiguous get_device".split()
    ),
)
