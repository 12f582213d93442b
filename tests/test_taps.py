"""A view with taps: the values at the nodes, beside outputs, weights and gradients that stay what they are."""

import copy
import doctest

import pytest
import torch
from torch import nn

from fxsurgery import capture, taps
from fxsurgery.errors import SpecError
from fxsurgery.taps import tapped
from nonempty import nonempty
from zoo import ZOO, example, lively


class Overwriting(nn.Module):
    """Writes into feature maps after they were computed: the sum is read, its own storage is gone."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.skip, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        total = self.norm(self.conv(x)) + self.skip(x)
        flat = total.flatten(2)  # shares memory with the sum
        return self.head(self.relu(total).mean((2, 3))), flat.sum()


class Structured(nn.Module):
    """Takes a dict, gives a dict; an LSTM gives a tuple of tuples; sizes are read from the input."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, batch, *, scale):
        x = batch["left"] + batch["right"]
        steps, (last, _) = self.cell(x.reshape(x.shape[0], -1, 4))
        return {"scores": self.head(last[-1]) * scale, "steps": [steps]}


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def overwriting():
    return capture(lively(Overwriting().double().eval()), images(2, 3, 8, 8))


def structured():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Structured().eval()
    return capture(
        model, {"left": torch.ones(2, 3, 4), "right": torch.ones(2, 3, 4)}, example_kwargs={"scale": torch.ones(1)}
    )


def test_the_value_is_that_at_the_node_and_not_what_is_written_over_it():
    program, x = overwriting(), images(5, 3, 8, 8)
    assert "ReLU(inplace=True)" in program.text()
    model = program.trainable_copy()
    layer = {name: model.get_submodule(name) for name in ("conv", "norm", "skip")}
    (scores, _), features = tapped(model, ["conv", "norm", "add", "flatten", "relu"])(x)
    conv = layer["conv"](x)
    total = layer["norm"](conv) + layer["skip"](x)
    wanted = {
        "conv": conv, "norm": layer["norm"](conv), "add": total, "flatten": total.flatten(2),
        "relu": total.clamp(min=0),
    }  # fmt: skip
    assert list(features) == list(wanted)
    assert all(torch.equal(features[name], value) for name, value in wanted.items())
    assert (features["add"] < 0).any()
    assert torch.equal(scores, model(x)[0])


@pytest.mark.parametrize("training", [False, True])
def test_every_node_of_every_model_is_read_as_an_interpreter_reads_it(training):
    read = 0
    for name in ZOO:
        program = capture(ZOO[name](), example(name))
        nodes = [n.name for n in program.nodes if n.op != "output"]
        model, twin = program.trainable_copy().train(training), program.trainable_copy().train(training)
        given = [x.clone() for x in program.examples.leaves]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            found = tapped(model, nodes)(*[x.clone() for x in given])[1]
            torch.manual_seed(0)
            wanted = {}

            class Noting(torch.fx.Interpreter):
                def run_node(self, n, wanted=wanted):
                    wanted[n.name] = copy.deepcopy(value := super().run_node(n))
                    return value

            Noting(twin).run(*given)
        assert list(found) == nodes
        for node in nodes:
            torch.testing.assert_close(found[node], wanted[node], rtol=0, atol=0, equal_nan=True)
            read += 1
    assert read > 100


def test_model_and_view_are_one_in_weights_modes_devices_and_replaced_tensors():
    model = overwriting().trainable_copy()
    view, x = tapped(model, ["norm"]), images(4, 3, 8, 8)
    assert [id(p) for p in view.parameters()] == [id(p) for p in nonempty(model.parameters())]
    assert view.state_dict().keys() == model.state_dict().keys()
    model.train()
    assert view.get_submodule("norm").training
    view(x)
    assert model.get_submodule("norm").num_batches_tracked == 1
    view.eval()
    assert not model.get_submodule("norm").training
    model.float()
    assert view(x.float())[1]["norm"].dtype == torch.float32
    model.get_submodule("conv").weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    norm = model.get_submodule("norm")
    wanted = norm(model.get_submodule("conv").bias.reshape(1, 4, 1, 1).expand(4, 4, 6, 6))
    torch.testing.assert_close(view(x.float())[1]["norm"], wanted)


def test_gradients_flow_through_outputs_and_features_as_by_hand():
    program, x = overwriting(), images(5, 3, 8, 8)
    model, twin = program.trainable_copy(), program.trainable_copy()
    (scores, total), features = tapped(model, ["norm", "add"])(x)
    (scores.square().sum() + total + features["norm"].pow(3).sum() + features["add"].sin().sum()).backward()
    norm = twin.norm(twin.conv(x))
    add = norm + twin.skip(x)
    hidden = add.clamp(min=0)
    out = twin.head(hidden.mean((2, 3)))
    # The user's second output is read after the activation has written into the sum.
    (out.square().sum() + hidden.sum() + norm.pow(3).sum() + add.sin().sum()).backward()
    for (name, own), other in nonempty(zip(model.named_parameters(), twin.parameters(), strict=True)):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: n + m)


def test_inputs_by_name_in_structures_tuples_and_other_sizes():
    program = structured()
    model = program.trainable_copy()
    view = tapped(model, ["cell"])
    batch = {"left": torch.rand(4, 7, 4), "right": torch.rand(4, 7, 4)}
    output, features = view(batch, scale=torch.full((1,), 2.0))
    assert output.keys() == {"scores", "steps"}
    steps, (last, state) = features["cell"]
    wanted = model.get_submodule("cell")(batch["left"] + batch["right"])
    assert all(torch.equal(*pair) for pair in zip((steps, last, state), (wanted[0], *wanted[1]), strict=True))
    assert steps.shape == (4, 7, 5)
    assert torch.equal(output["steps"][0], steps)
    assert output["steps"][0].data_ptr() != steps.data_ptr()


def test_an_input_and_a_parameter_that_the_graph_reads_are_tapped():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x.mul_(2) * self.weight

    model = capture(Reading().eval(), torch.ones(2, 3)).trainable_copy()
    output, features = tapped(model, ["x", "weight"])(torch.ones(5, 3))
    assert torch.equal(features["x"], torch.ones(5, 3))
    assert torch.equal(features["weight"], model.weight)
    assert torch.equal(output, torch.full((5, 3), 2.0))


def test_a_teacher_is_left_as_it_was():
    program, x = overwriting(), images(4, 3, 8, 8)
    before, text = {k: v.clone() for k, v in program.graph_module.state_dict().items()}, program.text()
    view = program.tapped(["add"])
    assert {p.data_ptr() for p in nonempty(view.parameters())} == {
        p.data_ptr() for p in program.graph_module.parameters()
    }
    assert not view.get_submodule("norm").training
    with torch.no_grad():
        output, features = view(x)
    assert torch.equal(output[0], program(x)[0])
    view.train()
    assert not program.graph_module.get_submodule("norm").training
    program.verify()
    assert program.text() == text
    assert all(torch.equal(v, before[k]) for k, v in nonempty(program.graph_module.state_dict().items()))
    assert features["add"].shape == (4, 4, 6, 6)


def test_a_copy_of_a_view_has_weights_of_its_own_once():
    model = overwriting().trainable_copy()
    view = copy.deepcopy(tapped(model, ["add"]))
    with torch.no_grad():
        model.get_parameter("conv.weight").zero_()
    features = view(images(2, 3, 8, 8))[1]
    assert view.get_parameter("conv.weight").any()
    assert len(list(view.parameters())) == len(list(model.parameters()))
    assert features["add"].shape == (2, 4, 6, 6)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


@pytest.mark.parametrize("name", ["body_1_layer", "body.1.layer"])
def test_a_node_inside_a_module_kept_whole_is_refused(name):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), Block())

        def forward(self, x):
            return self.body(x)

    program = capture(Whole().eval(), torch.ones(2, 4), leaf_modules=(Block,))
    with pytest.raises(SpecError, match=rf"{name}' is inside 'body.1', a leaf module.*'body_1'"):
        program.tapped([name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("output", "is the output of the model, which is returned anyway; name what it reads: head, sum"),
        ("nrom", "no node is named 'nrom'; there are: norm"),
        ("features.0", "no node is named 'features.0'; there are: "),
    ],
)
def test_what_is_no_node_is_refused(name, message):
    with pytest.raises(SpecError, match=message):
        overwriting().tapped([name])


def test_a_module_is_tapped_at_the_node_that_calls_it():
    program = capture(nn.Sequential(nn.Linear(4, 4)).eval(), torch.ones(2, 4))
    with pytest.raises(SpecError, match="no node is named '0', which is a module; name the node that calls it: '_0'"):
        program.tapped(["0"])


def test_a_text_is_no_list_of_names():
    with pytest.raises(SpecError, match="nodes='conv'"):
        tapped(overwriting().trainable_copy(), "conv")


def test_an_object_that_hides_its_tensors_is_refused():
    class Box:
        def __init__(self, value):
            self.value = value

    class Boxing(nn.Module):
        def forward(self, x):
            return Box(x)

    root = nn.Module()
    root.boxing = Boxing()
    graph = torch.fx.Graph()
    box = graph.call_module("boxing", (graph.placeholder("x"),))
    graph.output(graph.call_function(getattr, (box, "value")))
    with pytest.raises(SpecError, match="node 'boxing' gives a Box, which cannot be copied; name the nodes that read"):
        tapped(torch.fx.GraphModule(root, graph), ["boxing"])(torch.ones(2))


def test_examples():
    found = doctest.testmod(taps)
    assert (found.failed, found.attempted > 0) == (0, True)
