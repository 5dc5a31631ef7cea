"""The estimators against meta-gradients in closed form.

The optimizee is the bowl f = theta^2 / 2 under gradient descent with step a = exp(log_lr), so that
theta_t = (1 - a)^t theta_0 and the meta-loss sum_t f(theta_t) is known for every log_lr. Evolution
strategies estimate the gradient of its Gaussian smoothing over log_lr, which quadrature gives.
"""

from __future__ import annotations

import math

import pytest
import torch

from learned_optim.meta_training.estimators import ES, ESTIMATORS, NRES, PES, TBPTT
from learned_optim.meta_training.estimators.base import told_horizon
from learned_optim.meta_training.meta_loss import Log, LogTail, Sum
from learned_optim.meta_training.truncation import Constant, Worker
from learned_optim.rules import L2L, Default, LearnableSGD
from learned_optim.tasks import MnistMLP
from learned_optim.tasks.base import Task, TaskFamily

RATE, SIGMA, WINDOW, STEPS = 0.1, 0.1, 3, 12


class BowlTask(Task):
    def init(self, generator):
        return {"theta": torch.ones(1)}, {}

    def loss(self, params, batch):
        return 0.5 * (params["theta"] ** 2).sum()


class Bowl(TaskFamily):
    name = "bowl"

    def sample(self, generator):
        return BowlTask()


def meta_loss_of(log_lr: torch.Tensor) -> torch.Tensor:
    """Sum over the whole horizon."""
    steps = torch.arange(1, STEPS + 1, dtype=torch.float64)
    return (0.5 * (1 - log_lr.exp().unsqueeze(-1)) ** (2 * steps)).sum(-1)


def smoothed_gradient() -> float:
    """d/dm E[L(m + sigma eps)] = E[L eps] / sigma, by quadrature."""
    eps = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = torch.exp(-(eps**2) / 2) / math.sqrt(2 * math.pi)
    values = meta_loss_of(math.log(RATE) + SIGMA * eps)
    return float(torch.trapezoid(values * eps * density, eps) / SIGMA)


def episode_estimates(estimator, runs=4000):
    """Total over the windows of one episode, from many independent runs: mean and its error."""
    rule = LearnableSGD(learning_rate=RATE)
    weights = rule.init_weights(torch.Generator())
    totals = []
    for index in range(20):
        worker = Worker(Bowl(), runs // 20, Constant(STEPS), 0, index)
        total = 0.0
        while worker.episode < 0 or (worker.carry and worker.carry.step < STEPS):
            total += float(estimator.estimate(rule, weights, worker, Sum()).grads["log_lr"])
        totals.append(total)
    sample = torch.tensor(totals, dtype=torch.float64)
    return float(sample.mean()), float(sample.std() / len(totals) ** 0.5)


@pytest.mark.parametrize("cls", [ES, PES, NRES])
def test_evolution_strategies_are_unbiased_for_the_smoothed_meta_loss(cls):
    mean, error = episode_estimates(cls(unroll=WINDOW, sigma=SIGMA))
    exact = smoothed_gradient()
    assert error < 0.05 * abs(exact)
    assert abs(mean - exact) < 3.5 * error


def test_truncated_backpropagation_is_exact_over_the_whole_horizon_and_biased_below_it():
    rule = LearnableSGD(learning_rate=RATE)
    weights = {key: value.double() for key, value in rule.init_weights(torch.Generator()).items()}
    point = weights["log_lr"].clone().requires_grad_()
    (exact,) = torch.autograd.grad(meta_loss_of(point), point)

    def total(unroll):
        worker, found = Worker(Bowl(), 1, Constant(STEPS), 0, 0), 0.0
        estimator = TBPTT(unroll=unroll, second_derivatives=True)
        while worker.episode < 0 or (worker.carry and worker.carry.step < STEPS):
            found += float(estimator.estimate(rule, weights, worker, Sum()).grads["log_lr"])
        return found

    assert total(STEPS) == pytest.approx(float(exact), rel=1e-6)
    biases = [abs(total(unroll) / float(exact) - 1) for unroll in (1, 3, 6, STEPS)]
    assert biases == sorted(biases, reverse=True)
    assert biases[1] > 0.3


def test_nres_keeps_a_perturbation_for_an_episode_and_pes_adds_them_up():
    rule, worker = LearnableSGD(), Worker(Bowl(), 2, Constant(6), 0, 0)
    weights = rule.init_weights(torch.Generator())
    worker.current(rule, perturbations=2)
    first, second = (NRES()._directions(worker, weights, start)[0]["log_lr"] for start in (0, 3))
    assert torch.equal(first, second)
    noises, sums = zip(*(PES()._directions(worker, weights, s) for s in (0, 3)), strict=True)
    assert not torch.equal(noises[0]["log_lr"], noises[1]["log_lr"])
    assert torch.equal(sums[1]["log_lr"], noises[0]["log_lr"] + noises[1]["log_lr"])
    worker.abandon()
    worker.current(rule, perturbations=2)
    assert not torch.equal(first, NRES()._directions(worker, weights, 0)[0]["log_lr"])
    noise, anew = PES()._directions(worker, weights, 0)
    assert torch.equal(noise["log_lr"], anew["log_lr"])


def test_a_diverging_member_counts_as_the_cap_and_is_reported():
    rule = LearnableSGD(learning_rate=100.0)
    worker = Worker(Bowl(), 3, Constant(60), 0, 0)
    estimate = NRES(unroll=60, loss_cap=5.0).estimate(
        rule, rule.init_weights(torch.Generator()), worker, Sum()
    )
    assert estimate.non_finite == 6  # both members of three pairs
    assert estimate.meta_loss == pytest.approx(60 * 5.0 * 0.5, rel=1e-6)


class BrokenBowlTask(BowlTask):
    """Of the runs some begin beyond all numbers."""

    def init(self, generator):
        broken = torch.rand((), generator=generator) < 0.5
        return {"theta": torch.full((1,), math.inf if broken else 1.0)}, {}


class BrokenBowl(TaskFamily):
    name = "broken_bowl"

    def sample(self, generator):
        return BrokenBowlTask()


@pytest.mark.parametrize("cls", [ES, PES, NRES])
def test_a_run_that_begins_beyond_all_numbers_counts_for_nothing_and_is_reported(cls):
    rule, worker = LearnableSGD(learning_rate=RATE), Worker(BrokenBowl(), 6, Constant(4), 0, 0)
    weights = rule.init_weights(torch.Generator())
    estimate = cls(unroll=4).estimate(rule, weights, worker, Sum())
    whole = cls(unroll=4).estimate(rule, weights, Worker(Bowl(), 6, Constant(4), 0, 0), Sum())
    broken = int((~worker.extra["first_loss"].isfinite()).sum())
    assert 0 < broken < 12
    assert estimate.non_finite == broken
    slope, unbroken = float(estimate.grads["log_lr"]), float(whole.grads["log_lr"])
    assert slope < 0
    assert unbroken < slope  # all six pull the same way


class DeepBowlTask(BowlTask):
    def loss(self, params, batch):
        return super().loss(params, batch) - 5.0


class DeepBowl(TaskFamily):
    name = "deep_bowl"

    def sample(self, generator):
        return DeepBowlTask()


@pytest.mark.parametrize("meta_loss", [Log(), LogTail()], ids=["log", "log_tail"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_losses_without_a_logarithm_teach_nothing_under_one_and_are_reported(name, meta_loss):
    rule, worker = LearnableSGD(learning_rate=RATE), Worker(DeepBowl(), 2, Constant(4), 0, 0)
    weights = rule.init_weights(torch.Generator())
    estimate = ESTIMATORS[name](unroll=4).estimate(rule, weights, worker, meta_loss)
    assert estimate.non_finite == (2 if name == "tbptt" else 4)
    assert not any(grad.any() for grad in estimate.grads.values())


@pytest.mark.parametrize("cls", [ES, PES, NRES])
def test_a_first_loss_below_zero_caps_from_above_by_its_size(cls):
    rule, worker = LearnableSGD(learning_rate=RATE), Worker(DeepBowl(), 3, Constant(4), 0, 0)
    weights = rule.init_weights(torch.Generator())
    estimate = cls(unroll=4, loss_cap=5.0).estimate(rule, weights, worker, Sum())
    assert (worker.extra["first_loss"] == -4.5).all()
    # The losses as they are: the cap, 5 * 4.5, is far above, where -5 * 4.5 would hide them all.
    assert -5.0 < estimate.stats["last_loss"] < -4.5
    assert -20.0 < estimate.meta_loss < -18.0
    assert float(estimate.grads["log_lr"]) < 0


def test_a_member_that_diverges_from_a_loss_below_zero_counts_as_the_cap():
    rule = LearnableSGD(learning_rate=100.0)
    worker = Worker(DeepBowl(), 3, Constant(60), 0, 0)
    weights = rule.init_weights(torch.Generator())
    estimate = NRES(unroll=60, loss_cap=5.0).estimate(rule, weights, worker, Sum())
    assert estimate.non_finite == 6
    assert estimate.meta_loss == pytest.approx(60 * 5.0 * 4.5, rel=1e-6)


def test_a_first_loss_below_zero_is_a_unit_without_its_sign():
    worker = Worker(DeepBowl(), 2, Constant(4), 0, 0, by_start=True)
    losses = worker.current(LearnableSGD()).loss
    torch.testing.assert_close(worker.unit(losses[None]), torch.full((2,), 4.5))


def test_a_floor_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"floor must be 0 or more but is -1\.0"):
        Log(floor=-1.0)


def test_clipped_differences_bound_the_estimate_and_are_counted():
    rule = LearnableSGD(learning_rate=1.9)
    weights = rule.init_weights(torch.Generator())
    free, clipped = (
        NRES(unroll=10, sigma=0.3, difference_clip=clip).estimate(
            rule, weights, Worker(Bowl(), 50, Constant(10), 0, 0), Sum()
        )
        for clip in (0.0, 1e-3)
    )
    assert free.stats["clipped"] == 0
    assert clipped.stats["clipped"] > 10
    assert abs(float(clipped.grads["log_lr"])) <= 1e-3 * 4 / (2 * 0.3)


@pytest.mark.parametrize(("told", "ratio"), [(0.0, 0.25), (1.0, 0.125)])
def test_late_windows_weigh_more(told, ratio):
    rule = LearnableSGD(learning_rate=1e-4)
    weights = rule.init_weights(torch.Generator())
    worker = Worker(Bowl(), 1, Constant(4), 0, 0)
    estimator = NRES(unroll=2, late=2.0, late_told=3.0, tell_horizon=told)
    values = [estimator.estimate(rule, weights, worker, Sum()).meta_loss for _ in "ab"]
    assert values[0] / values[1] == pytest.approx(ratio, rel=1e-2)


def test_the_horizon_is_told_to_the_stated_share_of_episodes():
    worker, told = Worker(Bowl(), 1, Constant(7), 0, 0), []
    for _ in range(200):
        worker.abandon()
        worker.current(LearnableSGD(), perturbations=2)
        told.append(told_horizon(worker, 0.5))
    assert set(told) == {None, 7}
    assert 70 < told.count(7) < 130


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_gives_finite_gradients_and_the_same_ones_when_resumed(name):
    """Contract: shapes, counts, finite numbers, and a worker that resumes to the same estimate."""
    rule = L2L(layers=1, hidden=3)
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    estimator = ESTIMATORS[name](unroll=4)
    worker = Worker(Bowl(), 2, Constant(8), 0, 0)
    estimator.estimate(rule, weights, worker, Sum())
    saved = worker.state_dict()
    twin = Worker(Bowl(), 2, Constant(8), 0, 0)
    twin.load_state_dict(saved, rule)
    first = estimator.estimate(rule, weights, worker, Sum())
    second = estimator.estimate(rule, weights, twin, Sum())
    assert {key: value.shape for key, value in first.grads.items()} == {
        key: value.shape for key, value in weights.items()
    }
    assert first.inner_steps > 0
    for key, value in first.grads.items():
        assert torch.equal(value, second.grads[key])
        assert value.isfinite().all()
    assert any(float(value.abs().max()) > 0 for value in first.grads.values())


@pytest.mark.parametrize("cls", [ES, PES, NRES])
def test_only_the_chosen_meta_parameters_are_perturbed(cls):
    rule = L2L(hidden=3, layers=1)
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    worker = Worker(Bowl(), 2, Constant(4), 0, 0)
    grads = cls(unroll=2, only=("head",)).estimate(rule, weights, worker, Sum()).grads
    assert {key for key, value in grads.items() if value.any()} == {"head.w", "head.b"}
    with pytest.raises(ValueError, match="no meta-parameter begins with"):
        cls(unroll=2, only=["hed"]).estimate(rule, weights, worker, Sum())


@pytest.mark.parametrize("rule", [L2L(layers=1, hidden=3), L2L(cell="gru", layers=1, hidden=3)])
def test_a_sample_of_coordinates_gives_the_meta_gradient_in_the_mean(rule):
    family = MnistMLP(hidden=5, batch_size=16, dataset="digits", init_std=0.3)
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    weights["head.w"] = torch.full_like(weights["head.w"], 0.2)

    def gradients(sample: int, seeds: int) -> list[torch.Tensor]:
        found = []
        for index in range(seeds):
            worker = Worker(family, 1, Constant(5), 1, 0)
            worker.current(rule)
            worker.episode = index  # same task, another sample
            estimator = TBPTT(unroll=5, sample=sample)
            grads = estimator.estimate(rule, weights, worker, Sum()).grads
            found.append(torch.cat([grads[key].flatten() for key in weights]))
        return found

    (whole,) = gradients(0, 1)
    torch.testing.assert_close(gradients(10_000, 1)[0], whole, rtol=1e-4, atol=1e-5)
    few = torch.stack(gradients(40, 200))
    assert float((few[0] - whole).norm() / whole.norm()) > 0.02
    assert float((few.mean(0) - whole).norm() / whole.norm()) < 0.02


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="sample must be 0 or more, and 0 with second_derivatives"):
        TBPTT(sample=3, second_derivatives=True)
    worker = Worker(MnistMLP(hidden=2, batch_size=4, dataset="digits"), 1, Constant(2), 1, 0)
    rule = Default(hidden=2, controller=2)
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="coordinatewise rules, which default is not"):
        TBPTT(unroll=2, sample=3).estimate(rule, weights, worker, Sum())
