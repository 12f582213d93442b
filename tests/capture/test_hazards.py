"""What torch.fx would drop or bake in without a word is refused, or kept alive."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class SilentReversal(torch.autograd.Function):
    """Makes no node at all: only the gradients tell."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Around(nn.Module):
    """Does something between two linear layers."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(3, 3), nn.Linear(3, 3), between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def refused(model, *inputs, match, leaf_modules=()):
    with pytest.raises(CaptureError, match=match) as caught:
        capture(model, *(inputs or (X,)), leaf_modules=leaf_modules)
    return str(caught.value)


def test_an_autograd_function_is_named():
    text = refused(Around(Call(Reversal.apply)), match="autograd.Function Reversal")
    assert "`between` (Call)" in text
    assert "test_hazards.py" in text


def test_an_autograd_function_without_operations_shows_in_the_gradients():
    refused(Around(Call(SilentReversal.apply)), match="gradient of .*autograd.Function")


def test_gradients_are_checked_under_no_grad_too():
    with torch.no_grad():
        refused(Around(Call(SilentReversal.apply)), match="gradient of .*autograd.Function")


def test_an_autograd_function_survives_in_a_leaf():
    program = capture(Around(Call(Reversal.apply)), X, leaf_modules=(Call,))
    assert len(list(program.calls(Call))) == 1


def test_a_no_grad_region_is_named():
    def frozen(x):
        with torch.no_grad():
            return x * 2

    text = refused(Around(Call(frozen)), match="torch.no_grad")
    assert "`return x * 2`" in text


def test_a_forward_decorated_with_no_grad_is_named():
    class Frozen(nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return x * 2

    refused(Around(Frozen()), match="torch.no_grad")


def test_an_autocast_region_is_named():
    def half(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.T

    refused(Call(half), match="autocast on cpu")


@pytest.mark.parametrize("path", ["", "between"])
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_of_an_inlined_module_are_refused(path, register):
    model = Around(Call(torch.relu))
    getattr(model.get_submodule(path), register)(lambda *_: None)
    refused(model, match=f"{path or 'the model itself'}.* has .*hooks")


def test_hooks_of_a_leaf_stay_with_it():
    model = Around(Call(torch.relu))
    model.first.register_forward_hook(lambda _module, _inputs, output: output * 2)
    torch.testing.assert_close(capture(model, X)(X), model(X))


def test_a_functional_dropout_that_bakes_the_train_flag_in_is_refused():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return functional.dropout(self.linear(x), 0.5, self.training)

    text = refused(Around(Dropping()), match="`between` .*Dropping.* reads self.training")
    assert "test_hazards.py" in text
    assert "leaf_modules" in text
    capture(Around(Dropping()), X, leaf_modules=(Dropping,))


def test_a_module_that_overrides_train_is_named():
    class FrozenNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    refused(Around(FrozenNorm()), match=r"`between` .*FrozenNorm.* overrides train\(\)")


def test_a_batch_size_that_got_baked_in_is_refused():
    def flatten(x):
        return x.reshape(x.shape[0] if isinstance(x, torch.Tensor) else 2, 3)

    refused(Around(Call(flatten)), match="got baked in.*only the graph fails")


def test_a_model_of_one_batch_size_is_taken():
    program = capture(Call(lambda x: x.reshape(2, 3) * 2), X)
    assert torch.equal(program(X), X * 2)


def test_random_numbers_that_got_baked_in_are_refused():
    refused(Around(Call(lambda x: x + torch.randn(3))), match="does not compute what the model does.*random")


def test_a_different_computation_behind_a_zero_head_is_found():
    model = Around(Call(lambda x: x * 2 if isinstance(x, torch.Tensor) else x))
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    refused(model, match="does not compute what the model does")


def test_example_inputs_of_zeros_do_not_make_the_check_vacuous():
    model = Call(lambda x: x * 2 if isinstance(x, torch.Tensor) else x)
    refused(model, torch.zeros(1, 3), match="does not compute what the model does.*differs")


def test_a_parameter_that_is_never_used_is_named():
    model = Around(nn.ReLU())
    model.spare = nn.Linear(3, 3)
    refused(model, match=r"never used in forward.*spare\.weight, spare\.bias")


def test_a_persistent_buffer_that_is_never_used_is_named():
    model = Around(nn.ReLU())
    model.register_buffer("mean", torch.zeros(3))
    refused(model, match=r"never used in forward.*mean")


def test_a_head_of_train_mode_alone_is_named():
    class Auxiliary(Around):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.aux = nn.Linear(3, 2)

        def forward(self, x):
            return (super().forward(x), self.aux(x)) if self.training else super().forward(x)

    refused(Auxiliary(), match=r"only reached in train mode.*aux\.weight.*without aux .*aux_logits=False")


class Cached(nn.Module):
    """Keeps what it worked out from its parameter until it is trained again."""

    def __init__(self):
        super().__init__()
        self.table, self.cache = nn.Parameter(torch.randn(3)), []

    def train(self, mode=True):
        self.cache = [] if mode else self.cache
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x + self.table * 2
        if not self.cache:
            self.cache.append(self.table * 2)
        return x + self.cache[0]


def test_a_warm_cache_does_not_bake_a_parameter_in():
    model = Around(Cached()).eval()
    with torch.no_grad():
        model(X)
    program = capture(model, X)
    assert "between.table" in program.graph_module.state_dict()
    assert len(model.between.cache) == 1


def test_a_buffer_in_a_branch_is_not_baked_in():
    class Initialised(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("ready", torch.tensor(1))

        def forward(self, x):
            return x if self.ready else x * 0

    refused(Initialised(), match="Python branch")


def test_a_batch_of_one_is_doubled_for_train_mode():
    capture(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), X[:1])


def test_a_model_that_cannot_train_is_refused():
    class Strict(nn.Module):
        def forward(self, x):
            if self.training:
                raise NotImplementedError("inference only")
            return x

    refused(nn.Sequential(nn.Linear(3, 3), Strict()), match="does not run .* in train mode.*inference only")


def test_scripted_compiled_and_patched_models_are_refused():
    with pytest.warns(FutureWarning, match="jit.script"):
        scripted = torch.jit.script(nn.Linear(3, 3))
    refused(Around(scripted), match="`between` is a ScriptModule")
    patched = Around(nn.ReLU())
    patched.forward = torch.relu
    refused(patched, match="forward was replaced")
    refused(torch.compile(nn.Linear(3, 3)), match=r"torch\.compile")
    refused(nn.LazyLinear(3), match="lazy parameters")
