"""A program beside the model it was taken of, in both modes."""

import copy

import torch
from torch.utils import _pytree as pytree

from fxsurgery.capture import capture
from nonempty import nonempty

SEED = 3


def tensors(output):
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def run(model, args, kwargs):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(SEED)
        return tensors(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))


def assert_same(program, model, *args, **kwargs):
    """Assert equal outputs in eval mode and, with one seed, in train mode, and equal gradients of the parameters."""
    with torch.no_grad():
        torch.testing.assert_close(run(program, args, kwargs), run(model.eval(), args, kwargs))
    ours, theirs = program.trainable_copy().train(), copy.deepcopy(model).train()
    got, wanted = run(ours, args, kwargs), run(theirs, args, kwargs)
    torch.testing.assert_close(got, wanted)
    sums = [sum(t.square().sum() for t in found if t.requires_grad) for found in (got, wanted)]
    if isinstance(sums[0], torch.Tensor):
        for total in sums:
            total.backward()
        theirs = dict(theirs.named_parameters(remove_duplicate=False))
        for name, parameter in nonempty(ours.named_parameters()):
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


def taken(model, *args, leaf_modules=(), **kwargs):
    """Return the program, which must equal the model on the example inputs."""
    program = capture(model, args, leaf_modules=leaf_modules, example_kwargs=kwargs)
    assert_same(program, model, *args, **kwargs)
    return program


def leaf_paths(program):
    """Return the paths of the modules that the notes list as leaves."""
    return [note.split("`")[1] for note in program.notes if "is kept as a leaf" in note]
