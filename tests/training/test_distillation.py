"""Distillation against its formulae, worked out apart from the code under test."""

import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
from fxsurgery.training import Recipe, Task, evaluate, fit, sgd
from fxsurgery.training.distillation import commonest_answer, distilled_task, outputs_of
from nonempty import nonempty
from zoo import ZOO, example, lively

DRAW = torch.Generator().manual_seed(3)
X, V = torch.randn(40, 6, generator=DRAW), torch.randn(24, 6, generator=DRAW)


def mlp(out=5):
    return lively(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, out)), seed=1).eval()


def task_of(model, **options):
    return distilled_task(capture(model, X[:2]), Inputs((X,)), Inputs((V,)), batch_size=10, **options)


class Parts(nn.Module):
    """Outputs of several kinds, in the container that `wrap` makes."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = mlp(6), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


class Tokens(nn.Module):
    """Logits (batch, tokens, classes) by name, as language models have them, and hidden states."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, ids):
        hidden = self.words(ids)
        return {"logits": self.head(hidden), "states": hidden}


def test_the_original_agrees_with_itself():
    model = mlp()
    score = evaluate(model, task_of(model))
    assert score.metric == 1
    assert score.loss == pytest.approx(0, abs=1e-6)
    assert score.samples == 24


def test_the_commonest_answer_is_counted_on_the_validation_inputs():
    model = mlp()
    program = capture(model, X[:2])
    task = distilled_task(program, Inputs((X,)), Inputs((V,)))
    with torch.no_grad():
        counts = model(V).argmax(1).bincount()
    assert commonest_answer(program, task) == pytest.approx(counts.max().item() / 24)
    assert commonest_answer(program, task) < 0.9
    with torch.no_grad():
        model[2].bias[3] += 100
    program = capture(model, X[:2])
    assert commonest_answer(program, distilled_task(program, Inputs((X,)), Inputs((V,)))) == 1
    values = capture(Parts(lambda y: (y, y)).eval(), X[:2])
    assert commonest_answer(values, distilled_task(values, Inputs((X,)), Inputs((V,)))) is None


def test_agreement_and_loss_are_the_formulae():
    model, other = mlp(), lively(mlp(), seed=9)
    score = evaluate(other, task_of(model))
    with torch.no_grad():
        t, z = model(V).double(), other(V).double()
    assert 0.1 < score.metric < 0.9
    assert score.metric == pytest.approx(float((t.argmax(1) == z.argmax(1)).double().mean()))
    p, q = (t / 2).softmax(1), (z / 2).softmax(1)
    assert score.loss == pytest.approx(float(4 * (p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_other_outputs_count_by_the_variance_they_explain():
    model = Parts(lambda y: (y[:, :4], {"far": 100 * y[:, 4:].unsqueeze(1)})).eval()
    near = Parts(lambda y: (y[:, :4] + 0.3, {"far": 100 * y[:, 4:].unsqueeze(1)})).eval()
    task = task_of(model)
    score = evaluate(near, task)
    with torch.no_grad():
        variance = float(model(X)[0].var(0, correction=0).mean())
    missed = 0.3**2 / variance / 2
    assert score.loss == pytest.approx(missed, rel=1e-3)
    assert score.metric == pytest.approx(1 - missed, rel=1e-3)
    assert task.metric_name == "variance explained of the original's outputs on synthetic inputs"


def test_worse_than_a_constant_is_zero():
    score = evaluate(Parts(lambda y: (-9 * y, y)).eval(), task_of(Parts(lambda y: (y, y)).eval()))
    assert score.metric == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("wrap", "kinds"),
    [
        (lambda y: y, [1]),
        (lambda y: {"logits": y, "extra": y}, [1, None]),
        (lambda y: {"out": y.view(-1, 3, 2, 1), "aux": y.view(-1, 3, 2, 1)}, [1, None]),
        (lambda y: (y, y), [None, None]),
        (lambda y: y[:, :1], [None]),
        (lambda y: y.view(-1, 2, 3), [None]),
        (lambda y: y[:, 0], [None]),
        (lambda y: (y, y.mean(), y.argmax(1)), [1]),
    ],
)
def test_class_scores_are_told_by_structure(wrap, kinds):
    assert [o.classes for o in outputs_of(capture(Parts(wrap).eval(), X[:2]))] == kinds


def test_logits_of_tokens_have_their_classes_last():
    ids = torch.randint(11, (8, 5))
    program = capture(Tokens().eval(), ids[:2])
    assert [o.classes for o in outputs_of(program)] == [2, None]
    task = distilled_task(program, Inputs((ids,)), Inputs((ids,)))
    assert evaluate(program.graph_module, task).metric == 1


def test_a_user_may_say_that_it_is_no_classification():
    task = task_of(mlp(), classes=False)
    assert task.metric_name.startswith("variance explained")
    assert evaluate(mlp(), task).metric == 1


def test_probabilities_are_taken_as_such():
    model, other = mlp(), lively(mlp(), seed=9)
    logits = evaluate(other, task_of(model))
    soft = evaluate(nn.Sequential(other, nn.Softmax(1)), task_of(nn.Sequential(model, nn.Softmax(1)).eval()))
    assert soft.metric == logits.metric
    assert soft.loss == pytest.approx(logits.loss, rel=1e-4)


def test_inputs_by_name_and_constants_come_back_in_their_places():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, parts, scale, *, shift):
            return self.body(parts["x"]) * scale + shift

    inputs = Inputs(({"x": X}, torch.tensor(2.0)), {"shift": X[:, :1]})
    model = Scaled().eval()
    example_kwargs = {"shift": X[:2, :1]}
    program = capture(model, {"x": X[:2]}, torch.tensor(2.0), example_kwargs=example_kwargs)
    task = distilled_task(program, inputs, inputs, batch_size=16)
    assert evaluate(model, task).metric == 1
    assert evaluate(model, task, task.train_data).metric == 1
    assert task.examples().batch == 2


def test_fine_tuning_on_it_brings_agreement():
    model, student = mlp(), lively(mlp(), seed=9)
    task = task_of(model)
    before = evaluate(student, task)
    fit(student, task, Recipe(steps=150, optimizer=sgd(0.05, momentum=0.9)), device="cpu")
    after = evaluate(student, task)
    assert after.loss < before.loss / 4
    assert after.metric > before.metric + 0.2


def test_real_inputs_without_labels_do_as_well():
    name = task_of(mlp(), on="your inputs").metric_name
    assert name == "agreement with the original on your inputs"


def test_the_original_stays_as_it_is():
    model = ZOO["Plain"]()
    program = capture(model, example("Plain"))
    before, state = {k: v.clone() for k, v in program.graph_module.state_dict().items()}, torch.get_rng_state()
    images = example("Plain", batch=9)
    kept = images.clone()
    task = distilled_task(program, Inputs((images,)), Inputs((images[:3],)), batch_size=4)
    assert isinstance(task, Task)
    assert all(torch.equal(v, before[k]) for k, v in nonempty(program.graph_module.state_dict().items()))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, kept)


def test_nothing_to_distil_is_said():
    with pytest.raises(DataError, match="no output of the model is a floating-point tensor"):
        task_of(Parts(lambda y: y.argmax(1)).eval())
    with pytest.raises(DataError, match="has samples"):
        distilled_task(capture(mlp(), X[:2]), Inputs((torch.tensor(1.0),)), Inputs((V,)))


def test_inputs_without_a_batch_dim_are_refused():
    """As detectors take them: a list of images, of which each may have another size."""

    class Each(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return [self.layer(image[None]).mean((2, 3)) for image in images]

    program = capture(Each().eval(), ([torch.randn(3, 8, 8), torch.randn(3, 9, 9)],))
    with pytest.raises(DataError, match=r"the batch in dim 0, and takes none: .*Give train_data and val_data"):
        outputs_of(program)


def test_answers_that_are_not_finite_are_refused():
    program = capture(nn.Sequential(nn.Linear(4, 5)).eval(), torch.randn(2, 4))
    inputs = Inputs((torch.randn(6, 4),))
    huge = Inputs((torch.full((6, 4), torch.inf),))
    with pytest.raises(DataError, match=r"val_inputs: the original's outputs on them cannot be learned: entry 0 has "):
        distilled_task(program, inputs, huge)
