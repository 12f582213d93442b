"""Tensors made out of numbers, or of the sizes and type of another tensor."""

from fxsurgery.ops.operator import Kind, Operator

DECLARED = (
    *(
        Operator(name=name, kind=Kind.CREATION, creates=True, takes_sizes_apart=True)
        for name in ("zeros", "ones", "empty")
    ),
    *(
        Operator(name=name, kind=Kind.CREATION, creates=True)
        for name in ("arange", "as_tensor", "eye", "full", "linspace", "tensor")
    ),
    *(
        Operator(name=name, kind=Kind.CREATION)
        for name in (
            "logspace range scalar_tensor asarray empty_strided tril_indices triu_indices zeros_like ones_like "
            "full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided new_tensor bartlett_window "
            "blackman_window hamming_window hann_window kaiser_window fill zero"
        ).split()
    ),
)
