"""Code that torch.fx would silently drop or bake in is rejected, kept as a leaf, or kept alive."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from capture.parity import leaf_paths, taken
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
    """Creates no node: only the gradients reveal it."""

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


def kept(model, *inputs, reason, path="between", kind=Call):
    """The model is captured with one leaf module, which trains as before."""
    program = taken(model, *(inputs or (X,)))
    assert leaf_paths(program) == [path]
    assert reason in program.notes[0]
    assert "test_hazards.py" in program.notes[0]
    assert len(list(program.calls(kind))) == 1
    return program


@pytest.mark.parametrize("function", [Reversal, SilentReversal])
def test_an_autograd_function_keeps_its_module_as_leaf(function):
    kept(Around(Call(function.apply)), reason="autograd.Function")
    with torch.no_grad():
        capture(Around(Call(function.apply)), X)


@pytest.mark.parametrize("function", [Reversal, SilentReversal])
def test_an_autograd_function_of_the_model_itself_is_refused(function):
    class Whole(Around):
        def forward(self, x):
            return function.apply(super().forward(x))

    text = refused(Whole(nn.ReLU()), match="autograd.Function")
    assert "in the model (Whole)" in text
    assert "test_hazards.py" in text


def test_a_backward_of_its_own_that_recording_cannot_see_shows_in_the_gradients():
    apply = Reversal.apply

    class Hidden(Around):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(apply, super().forward(x), use_reentrant=False)

    refused(Hidden(nn.ReLU()), match="autograd.Function")


def test_functional_transforms_keep_their_module_as_leaf():
    model = Around(Call(torch.vmap(lambda row: row * 2)))
    assert leaf_paths(taken(model, X)) == ["between"]


def test_a_size_that_depends_on_values_in_the_model_itself_is_noted():
    def masked(x):
        assert bool(x.shape[0])
        return x + x[x > 0].sum()

    (note,) = taken(Call(masked), X).notes
    assert "a size depends on the values of the inputs" in note
    assert "test_hazards.py" in note


def test_a_no_grad_region_keeps_its_module_as_leaf():
    def frozen(x):
        with torch.no_grad():
            return x * 2

    program = kept(Around(Call(frozen)), reason="gradients are turned off")
    assert "`return x * 2`" in program.notes[0]


def test_a_no_grad_region_around_a_layer_is_refused_in_the_model_itself():
    class Frozen(Around):
        def forward(self, x):
            with torch.no_grad():
                x = self.first(x)
            return self.last(x)

    text = refused(Frozen(nn.ReLU()), match="gradients are turned off")
    assert "`x = self.first(x)`" in text


def test_a_forward_decorated_with_no_grad_is_kept_as_leaf():
    class Frozen(nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return x * 2

    kept(Around(Frozen()), reason="gradients are turned off", kind=Frozen)


def test_an_autocast_region_keeps_its_module_as_leaf():
    def half(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ x.T @ x).float()

    kept(Around(Call(half)), reason="autocast region")
    refused(Call(half), match="autocast region")


@pytest.mark.parametrize("path", ["", "between"])
@pytest.mark.parametrize(
    ("register", "hook"),
    [
        ("register_forward_hook", lambda _module, _inputs, output: output * 2),
        ("register_forward_pre_hook", lambda _module, inputs: (inputs[0] * 2,)),
    ],
)
def test_what_forward_hooks_do_is_in_the_graph(path, register, hook):
    model = Around(Call(torch.relu))
    getattr(model.get_submodule(path), register)(hook)
    (note,) = taken(model, X).notes
    assert f"the forward hooks of `{path}` ran" in note


def test_backward_hooks_keep_their_module_as_leaf():
    model = Around(Call(torch.relu))
    model.between.register_full_backward_hook(lambda _module, gradients, _outputs: (gradients[0] * 2,))
    program = taken(model, X)
    assert leaf_paths(program) == ["between"]
    model = Around(nn.ReLU())
    model.register_full_backward_hook(lambda _module, gradients, _outputs: None)
    refused(model, match="hook")


def test_hooks_of_a_leaf_stay_with_it():
    model = Around(Call(torch.relu))
    model.first.register_forward_hook(lambda _module, _inputs, output: output * 2)
    torch.testing.assert_close(capture(model, X)(X), model(X))


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return functional.dropout(self.linear(x), 0.5, self.training)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x):
        return functional.batch_norm(x, self.mean, self.var, training=self.training)


class Recorded(Around):
    """Cannot be traced symbolically."""

    def forward(self, x):
        assert bool(x.shape[0])
        return super().forward(x)


@pytest.mark.parametrize("around", [Around, Recorded])
@pytest.mark.parametrize("between", [Dropping, Norm])
def test_a_train_flag_handed_to_a_function_follows_the_mode(around, between):
    program = taken(around(between()), X)
    assert [n.target for n in program.nodes if str(n.target).endswith("training")] == ["between.training"]
    assert not leaf_paths(program)


def test_a_norm_with_an_activation_in_it_becomes_torchs_own():
    class NormAct(nn.BatchNorm1d):
        def __init__(self, width):
            super().__init__(width)
            self.act = nn.ReLU()

        def forward(self, x):
            if self.training:
                self.num_batches_tracked.add_(1)
            mean, var = self.running_mean, self.running_var
            x = functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
            return self.act(x)

    for around in (Around, Recorded):
        model = around(NormAct(3))
        program = taken(model, X)
        assert [type(m) for _, m in program.calls(nn.Module)] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert program.graph_module.state_dict().keys() == model.state_dict().keys()


def test_a_branch_on_the_mode_keeps_its_module_as_leaf():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x).tanh() if self.training else self.linear(x)

    program = taken(Around(Branching()), X)
    assert leaf_paths(program) == ["between"]
    assert "train mode runs other operations than eval mode" in program.notes[0]


def test_a_value_given_back_by_a_dropout_is_not_taken_for_it():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.linear = nn.Dropout(0.5), nn.Linear(3, 3)

        def forward(self, x):
            assert bool(x.shape[0])
            return x + self.linear(self.drop(x))

    assert not leaf_paths(taken(nn.Sequential(nn.Linear(3, 3), Residual()), X))


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


def test_a_batch_size_is_not_baked_in():
    def flatten(x):
        size = x.shape[0] if isinstance(x, torch.Tensor) else 2
        return x.reshape(size, 3) + torch.zeros(2 * size + 1, 3)[size + 1 :] * torch.ones(size)[:, None]

    for batch in (1, 2, 5):
        program = taken(Around(Call(flatten)), X[:1].repeat(batch, 1))
        assert program(torch.randn(7, 3)).shape == (7, 3)
        assert not program.notes


def test_a_branch_on_the_batch_size_keeps_its_module_as_leaf():
    def narrow(x):
        return x * 2 if int(x.shape[0]) == 3 else x

    kept(Around(Call(narrow)), reason="depend on the batch size")
    refused(Call(narrow), match="depend on the batch size")


def test_a_branch_that_both_recorded_sizes_take_is_found_at_twice_the_batch():
    refused(Around(Call(lambda x: x * 2 if int(x.shape[0]) > 3 else x)), match="at another batch size")


def test_a_size_that_depends_on_values_keeps_its_module_as_leaf():
    def positive(x):
        assert bool(x.shape[0])
        return x + x[x > 0].sum() / (x[x > 0].shape[0] + 1)

    kept(Around(Call(positive)), reason="depends on the values of the inputs")


def test_a_number_that_depends_on_values_is_refused_in_the_model_itself():
    def counting(x):
        assert bool(x.shape[0])
        return x * int((x > 0).nonzero().shape[0])

    text = refused(Call(counting), match="depends on the values")
    assert "`return x * int((x > 0).nonzero().shape[0])`" in text


def test_a_size_that_depends_on_values_is_computed_anew():
    def counting(x):
        assert bool(x.shape[0])
        return x * (x > 0).nonzero().shape[0]

    program = taken(Call(counting), X)
    x = torch.randn(7, 3)
    assert torch.equal(program(x), counting(x))


def test_a_loop_as_long_as_the_values_say_is_refused_in_the_model_itself():
    def by_class(x):
        assert bool(x.shape[0])
        kinds = (x > 0).sum(1)
        for kind in torch.unique(kinds):
            x = x * torch.where(kinds == kind, kind, kind + 1).unsqueeze(1)
        return x

    text = refused(Call(by_class), match="iterates over a tensor whose length depends on the values")
    assert "`for kind in torch.unique(kinds):`" in text


def test_a_model_of_one_batch_size_is_taken():
    program = capture(Call(lambda x: x.reshape(2, 3) * 2), X)
    assert torch.equal(program(X), X * 2)


def test_random_numbers_are_drawn_anew():
    program = taken(Around(Call(lambda x: x + torch.randn(3))), X)
    assert not torch.equal(program(X), program(X))


def secret(x):
    """Behaves differently when it is recorded, which no front end can see."""
    return x * 2 if isinstance(x, torch.Tensor) and not torch.compiler.is_compiling() else x


def test_a_different_computation_behind_a_zero_head_is_found():
    model = Around(Call(secret))
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    refused(model, match="does not compute the same as the model")


def test_example_inputs_of_zeros_do_not_make_the_check_vacuous():
    refused(Call(secret), torch.zeros(1, 3), match="does not compute the same as the model.*differs")


@pytest.mark.parametrize("around", [Around, Recorded])
def test_what_is_never_used_is_left_out_and_named(around):
    model = around(nn.ReLU())
    model.spare = nn.Linear(3, 3)
    model.register_buffer("mean", torch.zeros(3))
    program = taken(model, X)
    assert program.notes == (
        "forward does not use these tensors, so they were removed: spare.weight, spare.bias, mean",
    )
    assert set(program.graph_module.state_dict()) == {"first.weight", "first.bias", "last.weight", "last.bias"}


def test_a_head_of_train_mode_alone_is_named():
    class Auxiliary(Around):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.aux = nn.Linear(3, 2)

        def forward(self, x):
            return (super().forward(x), self.aux(x)) if self.training else super().forward(x)

    refused(Auxiliary(), match=r"used only in train mode.*aux\.weight.*without aux .*aux_logits=False")


class Cached(nn.Module):
    """Caches a value computed from its parameter until it is trained again."""

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


def test_a_cache_that_fills_while_it_is_recorded_does_not_bake_a_parameter_in():
    class Lazy(Cached):
        def forward(self, x):
            assert bool(x.shape[0])
            return super().forward(x)

    program = taken(Around(Lazy()).eval(), X)
    assert "between.table" in program.graph_module.state_dict()


@pytest.mark.parametrize("around", [Around, Recorded])
def test_a_number_that_grows_from_call_to_call_is_refused(around):
    class Growing(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    refused(around(Growing()), match=r"output\[0\] of a second call differs.*from call to call")


def test_a_buffer_in_a_branch_is_not_baked_in():
    class Initialized(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("ready", torch.tensor(1))

        def forward(self, x):
            return x if self.ready else x * 0

    refused(Initialized(), match="Python branch")
    kept(Around(Initialized()), reason="Python branch", kind=Initialized)


def test_a_batch_of_one_is_doubled_for_train_mode():
    program = capture(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), X[:1])
    assert program.examples.batch == 1
    assert not program.notes


def test_a_model_that_cannot_train_is_taken_with_a_note():
    class Strict(nn.Module):
        def forward(self, x):
            if self.training:
                raise NotImplementedError("inference only")
            return x

    (note,) = capture(nn.Sequential(nn.Linear(3, 3), Strict()), X).notes
    assert note.startswith("train mode was not checked")
    assert "inference only" in note


def test_scripted_compiled_and_patched_models_are_refused():
    with pytest.warns(FutureWarning, match="jit.script"):
        scripted = torch.jit.script(nn.Linear(3, 3))
    program = capture(Around(scripted), X)
    assert len(list(program.calls(torch.jit.ScriptModule))) == 1
    assert leaf_paths(program) == ["between"]
    refused(scripted, match="is a torch.jit.ScriptModule")
    patched = Around(nn.ReLU())
    patched.forward = torch.relu
    refused(patched, match="`forward` was replaced")
    refused(torch.compile(nn.Linear(3, 3)), match=r"torch\.compile")
    refused(nn.LazyLinear(3), match="lazy parameters")


@pytest.mark.parametrize("name", ['a"b', "a\\b", 'x"); import os; ("', "two\nlines", "class"])
def test_a_name_that_code_cannot_quote_is_refused(name: str):
    model = nn.Sequential(nn.Linear(4, 4))
    model.add_module(name, nn.Linear(4, 2))
    with pytest.raises(CaptureError, match="a graph cannot contain the name"):
        capture(model, torch.randn(2, 4))
