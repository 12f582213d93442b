"""DNAL: the gates find the channels that matter, the budget is met, and the same seed ends the same."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxsurgery import Budget, Dnal, Task, capture
from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.structure import structure
from fxsurgery.errors import BudgetError
from fxsurgery.nn.gates import GateVector
from fxsurgery.passes import InsertGates
from fxsurgery.program import Program
from fxsurgery.searchers import dnal
from fxsurgery.searchers.common.widths import space
from fxsurgery.searchers.dnal import search
from fxsurgery.searchers.dnal.gate_penalty import GatePenalty
from fxsurgery.searchers.session import Session
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.training import Hooks, Progress, Recipe, Score, evaluate, fit, sgd
from nonempty import nonempty

QUICK = Dnal(align=1, weights_epochs=0, architecture_epochs=1, finetune_epochs=1, fewest_steps=40, learning_rate=0.02)


def data(count: int = 256, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of noise whose class is the brightest quadrant."""
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    quadrants = images.reshape(count, 2, 4, 2, 4).mean((2, 4)).flatten(1)
    return images, quadrants.argmax(1)


def task(**options: object) -> Task:
    return Task.of(data(), data(128, 1), batch_size=32, **options)


class Net(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.b, self.bn_b = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn_a(self.a(x)))
        x = torch.relu(self.bn_b(self.b(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def start(model: nn.Module | None = None) -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return capture((model or Net()).eval(), data()[0][:2])


@pytest.mark.parametrize("budget", [Budget(macs=0.5), Budget(macs=0.25), Budget(params=0.4)])
def test_lands_at_or_below_the_budget_within_two_percent(budget: Budget):
    program = start()
    outcome = search(program, budget, QUICK, Session(task()), trained=True)
    for name, limit in nonempty(budget.limits(cost(program))):
        after, whole = getattr(cost(outcome.program), name), getattr(cost(program), name)
        assert after <= limit
        one_channel = whole / 16 * 2
        assert after >= limit - max(0.02 * whole, one_channel)


def test_keeps_the_channels_that_carry_the_signal():
    """Half of the channels of a trained net are replaced by noise that nothing after needs."""
    program = start()
    trained = search(program, Budget(macs=1.0), QUICK, Session(task()), trained=True).program
    model = trained.trainable_copy()
    dead = [0, 2, 4, 6, 8, 10, 12, 14]
    with torch.no_grad():
        model.b.weight[:, dead] = 0.0
    outcome = search(trained.with_weights(model), Budget(macs=0.52), QUICK, Session(task()), trained=True)
    facts = structure(trained)
    [move] = [p for p in outcome.program.log if p.startswith("prune-channels")]
    from fxsurgery.passes import parse

    keep = parse(move).keep(trained)
    group = facts.group("a")
    gone = set(np.flatnonzero(~keep[group.units]).tolist())
    assert len(gone & set(dead)) > len(gone - set(dead))


def test_gates_harden_and_nothing_else_trains_in_the_architecture_stage():
    program = start()
    session = Session(task())
    found = space(program, align=1)
    seen = list[dict[str, Tensor]]()
    original = Session.fit

    def watched(self, model, *args, **options):
        before = {k: v.clone() for k, v in model.named_parameters()}
        original(self, model, *args, **options)
        seen.append({k: v - before[k] for k, v in model.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "fit", watched)
        _, _, gates = dnal._learn_gates(found, Budget(macs=0.5), QUICK, session)
    [moved] = seen
    assert {k for k, v in moved.items() if v.any()} == {"fxsurgery_gates.vector.logits"}
    assert ((gates < 0.1) | (gates > 0.9)).mean() > 0.95


def test_expected_cost_is_steered_to_the_budget():
    program = start()
    found = space(program, align=1)
    for share in (0.3, 0.6):
        plan, _, gates = dnal._learn_gates(found, Budget(macs=share), QUICK, Session(task()))
        keep = structure(program).mask(plan.units[gates < 0.5])
        from fxsurgery.analysis.cost import cost_after

        assert cost_after(program, keep).macs / cost(program).macs == pytest.approx(share, abs=0.1)


def test_a_gate_that_fits_no_width_stays_open():
    program = start(Net(width=12))
    found = space(program, align=8)
    outcome = search(program, Budget(macs=0.8), Dnal(**{**vars(QUICK), "align": 8}), Session(task()), trained=True)
    assert {c.group.name for c in found.choices} == {"a", "b"}
    assert {m.out_channels for _, m in nonempty(outcome.program.calls(nn.Conv2d))} <= {8, 12}


def test_same_seed_same_weights_other_seed_other_weights():
    program = start()
    ends = [
        search(program, Budget(macs=0.5), QUICK, Session(task(), Trainer(seed=seed)), trained=True).program.graph_module
        for seed in (0, 0)
    ]
    assert all(torch.equal(a, b) for a, b in nonempty(zip(ends[0].parameters(), ends[1].parameters(), strict=True)))


def test_random_mode_ranks_without_gates():
    outcome = search(start(), Budget(macs=0.5), Dnal(**{**vars(QUICK), "random": True}), Session(task()), trained=True)
    assert outcome.gates == ()
    assert cost(outcome.program).macs <= 0.5 * cost(start()).macs


def test_untrained_model_is_trained_first():
    program = start()
    config = Dnal(**{**vars(QUICK), "weights_epochs": 1})
    outcome = search(program, Budget(macs=0.5), config, Session(task()), trained=False)
    assert not torch.equal(outcome.trained.graph_module.a.weight, program.graph_module.a.weight)
    assert outcome.before.metric > evaluate(program.graph_module, task()).metric


def test_papers_lambda_closes_more_gates_the_larger_it_is():
    kept = []
    for penalty in (1e-6, 1.0):
        config = Dnal(**{**vars(QUICK), "penalty": penalty})
        kept.append(cost(search(start(), None, config, Session(task()), trained=True).program).macs)
    assert kept[1] < kept[0]


def test_papers_loss_is_equation_4_and_its_task_part_is_reported():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        program = capture(Net(4).double().eval(), data()[0][:2].double())
    model = InsertGates()(program).program.trainable_copy()
    [vector] = [m for m in model.modules() if isinstance(m, GateVector)]
    vector.mode = "soft"
    with torch.no_grad():
        vector.sharpness.fill_(1.7)
        vector.logits.copy_(torch.linspace(-1, 1, len(vector.logits)))
    twin, (x, y) = copy.deepcopy(model).train(), data(32)
    [own] = [m for m in twin.modules() if isinstance(m, GateVector)]
    before = own.logits.detach().clone()
    for _ in range(3):
        loss = nn.functional.cross_entropy(twin(x.double()), y)
        total = loss + 0.05 * sum(1 / (1 + torch.exp(-1.7 * s)) for s in own.logits)
        [gradient] = torch.autograd.grad(total, [own.logits])
        with torch.no_grad():
            own.logits.sub_(0.1 * gradient)
    one, progress = Task.of((x.double(), y), (x.double(), y), batch_size=32), Progress.quiet()
    hooks = Hooks(objective=GatePenalty(vector, 0.05))
    recipe = Recipe(steps=3, optimizer=sgd(0.1, momentum=0.0), validations=0)
    fit(model, one, recipe, parameters=[vector.logits], hooks=hooks, progress=progress, device="cpu")
    assert (own.logits - before).abs().min() > 1e-4
    torch.testing.assert_close(vector.logits, own.logits, rtol=1e-10, atol=1e-12)
    assert progress.history[-1]["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert progress.history[-1]["terms"] == {"penalty": pytest.approx((total - loss).item(), rel=1e-10)}


def test_budget_and_lambda_exclude_each_other():
    for budget, config in ((None, QUICK), (Budget(macs=0.5), Dnal(penalty=1e-4))):
        with pytest.raises(BudgetError, match="dnal takes either budget= or penalty="):
            search(start(), budget, config, Session(task()), trained=True)


def test_undecided_gates_are_said():
    outcome = search(start(), Budget(macs=0.5), QUICK, Session(task()), trained=True)
    assert any("flipped" in note for note in outcome.notes)


def test_a_score_that_is_no_number_is_never_the_best():
    program, session = start(), Session(task())
    for metric in (0.5, float("nan")):
        session.offer(program, Score(metric, 0.0, 1))
    assert session.best[0].metric == 0.5
