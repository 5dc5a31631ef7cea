"""Imitation of a hand-written rule: the gradient against autograd, and what it does to training."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

from learned_optim import meta_training
from learned_optim.meta_training.estimators import ESTIMATORS, NRES, TBPTT
from learned_optim.meta_training.imitation import Imitation, Lesson, as_drawn, gap
from learned_optim.meta_training.meta_loss import Sum
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe import RecipeError
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.meta_training.truncation import Constant, Worker
from learned_optim.meta_training.unroll import advance
from learned_optim.rules import L2L, RULES, Adam, Default, LearnableSGD, UpdateRule
from learned_optim.tasks import MnistMLP
from learned_optim.weights import WeightsUnavailable, save_folder

FAMILY = MnistMLP(hidden=5, batch_size=16, dataset="digits", init_std=0.3)
TEACHER = Adam(learning_rate=0.01)


def make_worker(pull, teacher: UpdateRule = TEACHER, runs=3, steps=20):
    worker = Worker(FAMILY, runs, Constant(steps), 1, 0)
    worker.teacher, worker.pull = as_drawn(teacher), pull
    return worker


def draw(rule):
    """Weights with heads of full size, so that all of them matter."""
    generator = torch.Generator().manual_seed(0)
    weights = rule.init_weights(generator)
    for key, value in weights.items():
        if "head" in key:
            weights[key] = 0.2 * torch.randn(value.shape, generator=generator)
    return weights


def by_graph(rule, weights, worker, windows, length, second_derivatives):
    """Autograd through the last window of `windows`; torch.optim.Adam shows the steps to imitate.

    The teacher is torch's own, over every window from the first on.
    """
    carry, targets = worker.current(rule), []
    theta = torch.nn.Parameter(carry.theta.clone())
    teacher = torch.optim.Adam([theta], lr=TEACHER.learning_rate)
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    value = distance = torch.zeros(())
    for _ in range(windows):
        carry = carry._replace(
            theta=carry.theta.detach(),
            grad=carry.grad.detach(),
            state={key: value.detach() for key, value in carry.state.items()},
        )
        value, distance = torch.zeros(()), torch.zeros(())
        for _ in range(length):
            with torch.no_grad():
                theta.copy_(carry.theta)
            theta.grad = carry.grad.detach().clone()
            teacher.step()
            target = theta.detach() - carry.theta.detach()
            before = carry
            carry = advance(
                rule,
                leaves,
                worker.runs,
                worker.layout,
                carry,
                second_derivatives=second_derivatives,
            )
            step = carry.theta - before.theta
            distance = distance + (step - target).square().sum(-1) / target.square().sum(-1)
            value = value + carry.loss.mean()
            targets.append(target)
    mean = distance.mean() / length
    total = value + worker.pull * mean
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, grads, strict=True)), float(mean.detach())


@pytest.mark.parametrize("second", [False, True], ids=["first_order", "second_derivatives"])
@pytest.mark.parametrize("rule", [L2L(layers=1, hidden=4), L2L(cell="gru", hidden=3)])
def test_the_meta_gradient_with_imitation_is_that_of_autograd(rule, second):
    weights = draw(rule)
    estimator = TBPTT(unroll=5, second_derivatives=second)
    worker = make_worker(pull=3.0)
    estimator.estimate(rule, weights, worker, Sum())
    estimate = estimator.estimate(rule, weights, worker, Sum())
    expected, distance = by_graph(rule, weights, make_worker(pull=3.0), 2, 5, second)
    plain, _ = by_graph(rule, weights, make_worker(pull=0.0), 2, 5, second)
    assert estimate.stats["imitation"] == pytest.approx(distance, rel=1e-3)
    for key, grad in expected.items():
        scale = float(grad.norm())
        assert float((estimate.grads[key] - grad).norm()) <= 2e-3 * scale, key
        assert float((plain[key] - grad).norm()) > 0.05 * scale, "imitation changes nothing here"


def test_a_rule_that_is_its_own_teacher_has_no_gap_and_one_that_stands_still_has_one():
    targets = torch.randn(4, 2, 7, generator=torch.Generator().manual_seed(0))
    assert float(gap(targets, targets).abs().max()) == 0.0
    torch.testing.assert_close(gap(torch.zeros_like(targets), targets), torch.ones(4, 2))
    assert float(gap(targets, torch.zeros_like(targets)).max()) == 0.0
    for name, estimator in ESTIMATORS.items():
        worker = make_worker(pull=1.0, steps=6)
        weights = TEACHER.init_weights(torch.Generator())
        found = estimator(unroll=3, **({} if name == "tbptt" else {"sigma": 1e-6}))
        estimate = found.estimate(TEACHER, weights, worker, Sum())
        assert estimate.stats["imitation"] < 1e-4, name


def test_a_teacher_begins_each_episode_anew():
    worker = make_worker(pull=1.0, steps=3)
    for _ in range(2):
        TBPTT(unroll=3).estimate(L2L(), draw(L2L()), worker, Sum())
        assert all(value.any() for value in worker.extra["teacher"].values())
        worker.current(L2L())
        lesson = worker.lesson()
        assert lesson is not None
        assert not any(value.any() for value in lesson.state.values())


def test_with_per_tensor_matrices_count_alike_and_vectors_a_tenth():
    worker = make_worker(1.0)
    carry = worker.current(TEACHER)
    sizes = worker.layout.sizes
    counts = [1.0 if len(shape) > 1 else 0.1 for shape in worker.layout.shapes]
    targets = torch.randn(carry.theta.shape, generator=torch.Generator().manual_seed(0)).sign()
    for index, size in enumerate(sizes):
        steps = [*targets.split(sizes, -1)]
        steps[index] = torch.zeros_like(steps[index])
        wrong = torch.cat(steps, -1).requires_grad_()
        for per_tensor, expected in (
            (True, counts[index] / sum(counts)),
            (False, size / sum(sizes)),
        ):
            lesson = Lesson(as_drawn(TEACHER)._replace(per_tensor=per_tensor), worker.runs, carry)
            found = lesson.gap(wrong, targets)
            assert found.tolist() == pytest.approx([expected] * 3)
            (gradient,) = torch.autograd.grad(found.sum(), wrong)
            torch.testing.assert_close(lesson.gap_gradient(wrong, targets).detach(), gradient)


@pytest.mark.parametrize("teacher", [Adam(), Default(), LearnableSGD()])
def test_every_teacher_watches_runs_and_pairs_alike(teacher):
    """A lesson over perturbed pairs without a perturbation is that over the runs."""
    rule = L2L(layers=1, hidden=2)
    targets = []
    for perturbations in (0, 2):
        worker = make_worker(1.0, teacher)
        carry = worker.current(rule, perturbations)
        lesson = Lesson(as_drawn(teacher), worker.runs, carry)
        lesson.target(carry)
        targets.append(lesson.target(carry._replace(step=1)))
    torch.testing.assert_close(targets[1], targets[0].unsqueeze(1).expand(-1, 2, -1))


def test_evolution_strategies_feel_the_pull_in_the_direction_of_backpropagation():
    """Towards a step of the teacher's size: a rule of one number, imitation alone."""
    rule, teacher = LearnableSGD(learning_rate=1e-3), LearnableSGD(learning_rate=1e-2)
    weights = rule.init_weights(torch.Generator())
    slopes = {}
    for name, estimator in (
        ("tbptt", TBPTT(unroll=5)),
        ("nres", NRES(unroll=5, sigma=1e-2)),
    ):
        found = {}
        for pull in (0.0, 1e3):
            worker = make_worker(pull, teacher, runs=200)
            found[pull] = float(estimator.estimate(rule, weights, worker, Sum()).grads["log_lr"])
        slopes[name] = (found[1e3] - found[0.0]) / 1e3
    # gap = (1 - a / b)^2, d gap / d log a = -2 (1 - a / b) a / b
    assert slopes["tbptt"] == pytest.approx(-2 * 0.9 * 0.1, rel=1e-3)
    assert slopes["nres"] == pytest.approx(-2 * 0.9 * 0.1, rel=0.3)


TABLE = {
    "name": "x",
    "rule": {"name": "l2l", "layers": 1, "hidden": 8},
    "tasks": [{"family": "quadratic", "runs": 16}],
    "estimator": {"name": "tbptt", "unroll": 10},
    "horizon": {"name": "constant", "steps": 20},
    "outer": {"steps": 200, "lr": 0.01},
    "validation": {"runs": 2, "steps": 5},
}


def test_the_pull_falls_to_zero_over_the_outer_steps():
    imitation = Imitation(weight=2.0, steps=4)
    assert [imitation.strength(step) for step in range(6)] == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    trainer = MetaTrainer(parse_recipe(TABLE | {"imitation": {"weight": 2.0, "steps": 2}}))
    told = ["imitation" in trainer.step()[0].estimate.stats for _ in range(4)]
    assert told == [True, True, False, False]


def test_a_pupil_comes_near_its_teacher():
    table = TABLE | {
        "imitation": {
            "weight": 100.0,
            "steps": 10_000,
            "teacher": {"name": "adam", "learning_rate": 0.1},
        }
    }
    trainer = MetaTrainer(parse_recipe(table))
    gaps = [trainer.step()[0].estimate.stats["imitation"] for _ in range(120)]
    assert gaps[0] > 0.9
    assert sum(gaps[-10:]) / 10 < 0.6


def folder_of_weights(tmp_path, rule):
    loaded = save_folder(tmp_path / "teacher", rule, draw(rule), name="teacher")
    return loaded, {"weight": 1e4, "steps": 10_000, "learned": "teacher"}


def test_a_learned_teacher_is_read_from_beside_the_recipe_and_imitated(tmp_path):
    """Its own twin has nothing to learn from it; another rule comes near it."""
    loaded, imitation = folder_of_weights(tmp_path, L2L(layers=1, hidden=3))
    gaps = {}
    for hidden, start in ((3, loaded.weights), (8, None)):
        table = TABLE | {"imitation": imitation, "rule": TABLE["rule"] | {"hidden": hidden}}
        trainer = MetaTrainer(parse_recipe(table))
        if start is not None:
            trainer.start_from(dict(start))
        trainer.learn_from(loaded)
        gaps[hidden] = [trainer.step()[0].estimate.stats["imitation"] for _ in range(60)]
    assert gaps[3][0] < 1e-6
    assert gaps[8][0] > 0.9
    assert gaps[8][-1] < 0.3


def test_the_odd_part_of_a_teacher_is_within_reach_of_a_rule_that_is_odd(tmp_path):
    teacher = L2L(layers=1, hidden=3)
    loaded, imitation = folder_of_weights(tmp_path, teacher)
    table = TABLE | {
        "imitation": imitation | {"odd": True},
        "rule": TABLE["rule"] | {"hidden": 6},
        "outer": TABLE["outer"] | {"odd": True},
    }
    trainer = MetaTrainer(parse_recipe(table))
    trainer.start_from(teacher.odd_part(dict(loaded.weights))[1])
    trainer.learn_from(loaded)
    assert trainer.step()[0].estimate.stats["imitation"] < 1e-6


def test_a_run_takes_its_teacher_from_the_folder_that_the_recipe_names(tmp_path):
    folder_of_weights(tmp_path, L2L(layers=1, hidden=3))
    text = """
name = "x"
[rule]
name = "l2l"
layers = 1
hidden = 8
[[tasks]]
family = "quadratic"
[imitation]
weight = 1.0
learned = "{folder}"
[outer]
steps = 2
[validation]
runs = 2
steps = 5
"""
    for folder, error in (("teacher", None), ("nobody", WeightsUnavailable)):
        recipe = tmp_path / f"{folder}.toml"
        recipe.write_text(text.format(folder=folder))
        with contextlib.nullcontext() if error is None else pytest.raises(error, match="nobody"):
            meta_training.run(recipe, output=tmp_path / "out" / folder, progress=False)


def test_a_teacher_that_cannot_be_is_refused(tmp_path):
    loaded, imitation = folder_of_weights(tmp_path, LearnableSGD())
    trainer = MetaTrainer(parse_recipe(TABLE | {"imitation": imitation | {"odd": True}}))
    with pytest.raises(ValueError, match="for a teacher of rule l2l, not learnable_sgd"):
        trainer.learn_from(loaded)
    with pytest.raises(RecipeError, match="learned = 'teacher': call learn_from first"):
        trainer.step()


def test_a_teacher_in_the_middle_of_an_episode_is_resumed():
    table = TABLE | {"imitation": {"weight": 1.0, "steps": 50}}
    whole, resumed = (MetaTrainer(parse_recipe(table)) for _ in "ab")
    whole.step()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for trainer in (whole, resumed):
        trainer.step()
    for key, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[key])


@pytest.mark.parametrize(
    ("imitation", "message"),
    [
        ({"weight": -1.0}, "weight >= 0"),
        ({"teacher": {"name": "l2l"}}, "teacher must be one of"),
        ({"teacher": {"name": "adamm"}}, "did you mean 'adam'"),
        ({"teacher": {"name": "adam", "learning_rat": 1.0}}, "did you mean 'learning_rate'"),
        ({"wait": 1.0}, "did you mean 'weight'"),
        ({"odd": True}, "odd needs a teacher that is learned"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(imitation, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(TABLE | {"imitation": imitation})


def test_every_rule_can_be_a_pupil():
    for name, cls in RULES.items():
        rule = cls()
        estimate = TBPTT(unroll=2).estimate(
            rule, draw(rule), make_worker(pull=1.0, runs=1, steps=4), Sum()
        )
        assert estimate.stats["imitation"] >= 0, name
        assert all(value.isfinite().all() for value in estimate.grads.values()), name
