"""Which operator a spelling stands for, and what declarations must not do."""

import operator
import threading

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.errors import OperatorError
from fxsurgery.ops import registry
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.spelling import python_function
from nonempty import nonempty


def swish(x):
    return x * x.sigmoid()


def call_nodes(function, inputs=1):
    graph = fx.symbolic_trace(function).graph
    return [node for node in graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize(
    ("one", "others"),
    [
        (torch.cat, [torch.concat, torch.concatenate]),
        (torch.add, [operator.add, operator.iadd]),
        (F.avg_pool2d, [torch._C._nn.avg_pool2d]),
        (F.max_pool2d, [torch.max_pool2d]),
        (F.max_pool2d_with_indices, [torch._C._nn.max_pool2d_with_indices]),
        (F.relu, [torch.relu, F.relu_, torch.relu_]),
        (torch.abs, [torch.absolute, abs, operator.abs]),
        (torch.div, [torch.divide, torch.true_divide, operator.truediv, operator.itruediv]),
        (torch.transpose, [torch.swapaxes, torch.swapdims]),
        (torch.movedim, [torch.moveaxis]),
        (torch.clamp, [torch.clip]),
        (F.sigmoid, [torch.sigmoid, torch.special.expit]),
    ],
)
def test_every_function_of_an_operator_is_known(one, others):
    known = registry.of_function(one)
    assert known is not None
    assert [registry.of_function(other) for other in others] == [known] * len(others)


@pytest.mark.parametrize(
    ("method", "function"),
    [("add", torch.add), ("add_", torch.add), ("__iadd__", torch.add), ("clip", torch.clamp), ("absolute", torch.abs)],
)
def test_a_method_is_the_operator_of_its_function(method, function):
    assert registry.of_method(method) is registry.of_function(function)


def test_a_module_counts_as_the_nearest_declared_base():
    class Own(nn.ReLU):
        pass

    relu = registry.named("relu")
    assert registry.of_module(Own()) is relu
    assert not relu.is_exactly(Own())
    assert relu.is_exactly(nn.ReLU())
    assert registry.of_module(nn.Module()) is None


def test_nodes_are_known_however_they_call():
    def model(x):
        return (x + 1).relu_().T.add(x.shape[0])

    names = [known.name for node in call_nodes(model) if (known := registry.of(node)) is not None]
    assert sorted(names) == ["add", "add", "getitem", "relu", "size", "t"]


def test_what_is_overwritten_is_told_of_every_spelling():
    graph = fx.Graph()
    x = graph.placeholder("x")
    writing = [
        graph.call_function(operator.iadd, (x, 1)),
        graph.call_function(operator.setitem, (x, 0, 1)),
        graph.call_function(F.relu, (x,), {"inplace": True}),
        graph.call_function(torch.relu_, (x,)),
        graph.call_method("mul_", (x, 2)),
        graph.call_method("an_unknown_one_", (x,)),
    ]
    reading = [graph.call_function(operator.add, (x, 1)), graph.call_method("relu", (x,))]
    assert [registry.overwritten(node) for node in writing] == [x] * len(writing)
    assert [registry.overwritten(node) for node in reading] == [None] * len(reading)
    [node] = call_nodes(nn.Sequential(nn.ReLU(inplace=True)))
    assert registry.overwritten(node, nn.ReLU(inplace=True)) is node.args[0]
    assert registry.overwritten(node, nn.ReLU()) is None


def test_operands_that_come_the_other_way_round_are_marked():
    assert registry.spelling_of_method("__rsub__").reflected
    assert not registry.spelling_of_method("__sub__").reflected
    assert python_function(registry.spelling_of_method("__rsub__")) is operator.sub
    assert python_function(registry.spelling_of_method("__isub__")) is operator.isub
    assert python_function(registry.spelling_of_method("__setitem__")) is operator.setitem
    assert python_function(registry.spelling_of_method("sub")) is None


def test_a_declared_operator_is_known_while_the_block_runs():
    before = registry.version()
    declared = Operator(name="swish", kind=Kind.POINTWISE, functions=(swish,), role="activation")
    with registry.declared(declared):
        assert registry.of_function(swish) is declared
        assert registry.named("swish") is declared
        assert registry.version() > before
    assert registry.of_function(swish) is None
    with pytest.raises(OperatorError, match="no operator is named 'swish'"):
        registry.named("swish")


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (Operator(name="relu", kind=Kind.POINTWISE), "name 'relu' is taken"),
        (Operator(name="mine", kind=Kind.POINTWISE, functions=(torch.relu,)), "already belongs to 'relu'"),
        (Operator(name="mine", kind=Kind.POINTWISE, modules=(nn.Conv2d,)), "already belongs to 'conv2d'"),
        (Operator(name="mine", kind=Kind.POINTWISE), "has no spelling"),
        (Operator(name="abs2", kind=Kind.POINTWISE, aliases=("abs3",), functions=(swish,)), "has the alias 'abs3'"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(operator, words):
    with pytest.raises(OperatorError, match=words), registry.declared(operator):
        pass
    assert registry.of_function(torch.relu).name == "relu"


def test_threads_may_declare_at_once():
    def declare(number):
        def function(x):
            return x

        with registry.declared(Operator(name=f"own{number}", kind=Kind.POINTWISE, functions=(function,))):
            found.append(registry.of_function(function).name)

    found = []
    threads = [threading.Thread(target=declare, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["own0", "own1", "own2", "own3"]


def test_every_alias_of_pytorch_belongs_to_the_operator_it_names():
    """PyTorch's own docstrings say which functions are aliases."""
    checked = 0
    for name in nonempty(dir(torch)):
        text = getattr(torch, name).__doc__
        told = text.partition("Alias for :func:`torch.")[2].partition("`")[0] if isinstance(text, str) else ""
        known = registry.of_function(getattr(torch, told, None)) if told and "." not in told else None
        if known is not None:
            checked += 1
            assert registry.of_function(getattr(torch, name)) is known, name
    assert checked > 20
