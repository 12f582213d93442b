"""Properties of a captured program, and what capture leaves unchanged."""

import copy
import gc
import operator
import random

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError, DataError
from nonempty import nonempty


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return x + self.drop(self.act(self.bn(self.conv(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(Block(), Block())
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5), requires_grad=False)
        self.register_buffer("shift", torch.ones(4, 1, 1), persistent=False)
        self.unused = nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.blocks(self.first(x)) * self.scale + self.shift
        return self.head(x.mean((2, 3)))


def image(batch=2):
    return torch.randn(batch, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def snapshot(model):
    state = {name: t.clone() for name, t in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    return state, flags, [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()]


def assert_unchanged(model, before):
    after = snapshot(model)
    assert all(torch.equal(after[0][name], t) for name, t in nonempty(before[0].items()))
    assert after[1:3] == before[1:3]
    assert all(a is b for a, b in nonempty(zip(after[3], before[3], strict=True)))


def rng_states():
    return torch.get_rng_state().tolist(), random.getstate(), pytree.tree_leaves(np.random.get_state())  # noqa: NPY002


def assert_same_rng(before):
    assert all(np.array_equal(a, b) for a, b in nonempty(zip(rng_states()[2], before[2], strict=True)))
    assert rng_states()[:2] == before[:2]


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize("kind", [Net, Branching])
def test_the_users_model_and_random_state_stay_bit_for_bit(kind):
    model = kind().train()
    model.blocks[0].bn.eval()
    model(image()).sum().backward()
    before, states, x = snapshot(model), rng_states(), image()
    try:
        capture(model, x)
    except CaptureError:
        assert kind is Branching
    assert_unchanged(model, before)
    assert_same_rng(states)
    assert torch.equal(x, image())


def test_the_program_is_in_eval_mode_and_computes_the_same():
    model = Net()
    program = capture(model.train(), image(1))
    assert not any(m.training for m in program.graph_module.modules())
    torch.testing.assert_close(program(image(5)), model.eval()(image(5)), rtol=0, atol=0)


def test_the_program_shares_no_tensor_with_the_model():
    model, constant = Net(), torch.ones(3)
    model.head.register_forward_hook(lambda *_: None)
    program = capture(model, image())
    ours = {t.data_ptr() for t in program.graph_module.state_dict().values()}
    assert not ours & {t.data_ptr() for t in model.state_dict().values()}

    class Shifted(nn.Module):
        def forward(self, x):
            return x + constant

    program = capture(Shifted(), torch.randn(2, 3))
    assert all(b.data_ptr() != constant.data_ptr() for b in nonempty(program.graph_module.buffers()))


def test_state_dict_keys_and_requires_grad_are_the_users():
    model = Net()
    program = capture(model, image())
    assert program.graph_module.state_dict().keys() == model.state_dict().keys()
    assert "shift" in dict(program.graph_module.named_buffers())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in program.graph_module.named_parameters()} == flags


def test_a_constant_of_forward_is_no_part_of_the_state_dict():
    class Offset(nn.Module):
        def forward(self, x):
            return x + torch.tensor([1.0, 2.0])

    program = capture(Offset(), torch.zeros(1, 2))
    assert not program.graph_module.state_dict()
    assert program.trainable_copy()(torch.zeros(1, 2)).tolist() == [[1.0, 2.0]]


def test_defaults_beyond_the_examples_stay_defaults():
    class Optional(nn.Module):
        def forward(self, x, mask=None, *, gain=3.0):
            return x * gain if mask is None else x * mask * gain

    x = torch.randn(2, 3)
    program = capture(Optional(), x)
    assert [n.name for n in program.nodes if n.op == "placeholder"] == ["x"]
    assert torch.equal(program(x), x * 3)
    assert torch.equal(capture(Optional(), x, x > 0)(x, x > 0), x * (x > 0) * 3)


def test_variable_positional_inputs_are_taken():
    class Sum(nn.Module):
        def forward(self, first, *others):
            return first + sum(others)

    x = torch.randn(2, 3)
    assert torch.equal(capture(Sum(), x, x, x)(x, x, x), x + (0 + x + x))


def test_nested_outputs_and_integer_inputs_are_taken():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)

        def forward(self, tokens):
            x = self.embed(tokens)
            return {"logits": x, "best": (x.argmax(-1), None)}

    tokens = torch.randint(7, (2, 5))
    output = capture(Tagger(), tokens)(tokens)
    assert output["logits"].shape == (2, 5, 4)
    assert output["best"][0].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).to(dtype)
    program = capture(model, torch.randn(2, 3, dtype=dtype))
    assert program.run_examples()[0].dtype == dtype


def test_a_shared_module_keeps_one_of_its_names():
    layer = nn.Linear(3, 3)
    program = capture(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 3))
    assert set(program.graph_module.state_dict()) == {"0.weight", "0.bias"}


def test_tensors_of_a_traced_size_are_made_at_run_time():
    class Positions(nn.Module):
        def forward(self, x):
            return x + torch.arange(x.shape[1], device=x.device) * torch.ones(x.shape[0], 1)

    x = torch.randn(2, 3)
    assert capture(Positions(), x)(torch.zeros(4, 6)).shape == (4, 6)


def test_leaf_modules_stay_leaves():
    program = capture(Net(), image(), leaf_modules=(Block,))
    assert len(list(program.calls(Block))) == 2


def test_a_parametrized_module_stays_leaf():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.utils.parametrizations.weight_norm(Own(3, 4)), nn.ReLU())
    program = capture(model, torch.randn(2, 3))
    assert program.graph_module.state_dict().keys() == model.state_dict().keys()
    assert [n.op for n in program.nodes] == ["placeholder", "call_module", "call_module", "output"]


def test_a_module_without_state_that_reads_training_stays_alive_in_train_mode():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) if self.training else x

    program = capture(nn.Sequential(nn.Linear(3, 3), Noise()), torch.randn(2, 3))
    trained, x = program.trainable_copy().train(), torch.randn(2, 3)
    assert not torch.equal(trained(x), trained(x))


def test_capture_works_under_no_grad_and_inference_mode():
    wanted = capture(Net(), image()).text()
    with torch.no_grad():
        assert capture(Net(), image()).text() == wanted
    with torch.inference_mode():
        assert capture(Net(), image()).text() == wanted


def test_an_update_of_a_buffer_in_place_is_kept():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count.add_(1)
            return x * 2

    trained = capture(Counting(), torch.randn(2, 3)).trainable_copy()
    trained(torch.randn(2, 3))
    assert trained.count == 1


def test_no_inputs_or_wrong_inputs_are_a_data_error():
    with pytest.raises(DataError, match="no example input is a tensor"):
        capture(Net())
    with pytest.raises(DataError, match="no example input is a tensor"):
        capture(Net(), [1.0])
    with pytest.raises(DataError, match=r"\(2, 5, 6, 6\).*expected input\[2, 5, 6, 6\] to have 4 channels"):
        capture(Net(), torch.randn(2, 5, 6, 6))
    with pytest.raises(DataError, match="takes 2 positional arguments"):
        capture(Net(), image(), image())


def test_a_model_that_cannot_be_copied_says_so():
    class Stubborn(Net):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    with pytest.raises(CaptureError, match=r"cannot be deep-copied.*no copies"):
        capture(Stubborn(), image())


def test_a_copy_that_shares_its_tensors_is_refused():
    class Sharing(Net):
        def __deepcopy__(self, memo):
            return copy.copy(self)

    with pytest.raises(CaptureError, match="shares memory for"):
        capture(Sharing(), image())


def test_an_output_without_a_tensor_is_refused():
    class Talking(nn.Module):
        def forward(self, x):
            return "a cat", None

    with pytest.raises(CaptureError, match=r"output contains no tensor \(str, NoneType\)"):
        capture(Talking(), image())


def test_functional_models_run_at_other_sizes():
    class Pool(nn.Module):
        def forward(self, x):
            return functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)

    assert capture(Pool(), image(1))(image(7)).shape == (7, 4)


def test_checks_of_the_rank_are_left_out_and_others_stay():
    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            torch._assert(x.ndim == 2, "rank")
            torch._assert(x.dim() == 2, "rank")
            torch._assert(x.shape[1] == 3, "width")
            return self.linear(x)

    program = capture(Checked(), torch.randn(2, 3))
    assert [n.args[1] for n in program.nodes if n.target is torch._assert] == ["width"]
    assert not [n for n in program.nodes if n.target == "dim" or (n.target is getattr and n.args[1] == "ndim")]
    with pytest.raises(AssertionError, match="width"):
        program(torch.randn(2, 4))


def alive():
    return {id(m): m for m in gc.get_objects() if issubclass(type(m), (Net, fx.GraphModule))}


def test_no_copy_of_the_model_waits_for_the_garbage_collector():
    model = Net()
    gc.collect()
    others = alive()
    gc.disable()
    try:
        program = capture(model, image())
        left = alive().keys() - others.keys()
    finally:
        gc.enable()
    assert left == {id(program.graph_module)}


@pytest.mark.parametrize("embedding", [nn.Embedding(50, 16, sparse=True), nn.EmbeddingBag(50, 16, sparse=True)])
def test_sparse_gradients_are_compared_as_dense_ones(embedding):
    ids = torch.randint(0, 50, (8, 5))
    program = capture(nn.Sequential(embedding, nn.Linear(16, 4)), ids)
    assert not [note for note in program.notes if "was not compared" in note]


def test_sparse_tensors_are_refused_by_name():
    model = nn.Linear(4, 4)
    with pytest.raises(DataError, match="an example input is a sparse tensor"):
        capture(model, torch.eye(4).to_sparse())
    model.register_buffer("adjacency", torch.eye(4).to_sparse())
    with pytest.raises(CaptureError, match="holds the sparse tensor `adjacency`"):
        capture(model, torch.eye(4))


@pytest.mark.parametrize("recorded", [False, True])
def test_numbers_of_numpy_become_plain_ones(recorded):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.scale, self.slope, self.size = np.sqrt(64), np.float32(0.25), np.int64(3)

        def forward(self, x):
            if recorded:
                assert bool(x.shape[0])
            y = functional.leaky_relu(self.linear(x), negative_slope=self.slope) / self.scale
            return y.view(-1, self.size) * np.bool_(True)

    torch.manual_seed(0)
    model, x = Scaled().eval(), torch.randn(2, 4)
    program = capture(model, x)
    assert torch.allclose(program(x), model(x))
    assert "np." not in program.graph_module.code
    assert any(node.target is operator.truediv for node in program.nodes) is not recorded


def test_an_example_without_numbers_is_refused():
    with pytest.raises(DataError, match=r"\(2, 3\) is on the meta device; pass tensors"):
        capture(nn.Linear(3, 2), torch.randn(2, 3, device="meta"))
