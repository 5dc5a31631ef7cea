"""The unroll, the replay and tbptt, against graphs and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from learned_optim import kernels
from learned_optim.meta_training import tape
from learned_optim.meta_training.adjoint import smoothing_widths
from learned_optim.meta_training.estimators import tbptt
from learned_optim.meta_training.estimators.tbptt import TBPTT
from learned_optim.meta_training.meta_loss import META_LOSSES, Log, LogTail, Sum
from learned_optim.meta_training.replay import cotangents
from learned_optim.meta_training.truncation import Constant, HeavyTailed, LogUniform, Worker
from learned_optim.meta_training.unroll import Runs, advance, begin
from learned_optim.rules import L2L, RULES, Default, LearnableSGD
from learned_optim.rules.base import UpdateRule, Weights
from learned_optim.rules.hand import HAND_SCALE
from learned_optim.tasks.base import Task, TaskFamily
from learned_optim.tasks.mnist_mlp import MnistMLP
from learned_optim.tasks.quadratic import Quadratic

SMALL = MnistMLP(hidden=5, batch_size=16, dataset="digits", init_std=0.3)


def draw(rule: UpdateRule, seed: int = 0) -> Weights:
    """Initial weights, with heads of full size where there are some, so that all weights matter."""
    generator = torch.Generator().manual_seed(seed)
    weights = rule.init_weights(generator)
    for key, value in weights.items():
        if "head" in key:
            weights[key] = 0.2 * torch.randn(value.shape, generator=generator)
    return weights


def window_gradient_by_graph(rule, weights, worker, steps, meta_loss, second_derivatives):
    carry = worker.current(rule)
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    losses = []
    for _ in range(steps):
        carry = advance(
            rule,
            leaves,
            worker.runs,
            worker.layout,
            carry,
            second_derivatives=second_derivatives,
        )
        losses.append(carry.loss)
    value = meta_loss(torch.stack(losses)).mean()
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), float(value.detach())


# The end of a window of seven steps would be one loss, whose gradient is mostly rounding.
WINDOW_LOSSES = {key: LogTail(0.5) if cls is LogTail else cls() for key, cls in META_LOSSES.items()}


@pytest.mark.parametrize("meta_loss", WINDOW_LOSSES.values(), ids=WINDOW_LOSSES)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("way", ["kernels", "tape", "replay"])
def test_every_way_gives_the_gradient_of_the_unrolled_graph(name, meta_loss, way, monkeypatch):
    if way != "kernels":
        monkeypatch.setattr(kernels, "available", lambda: False)
        monkeypatch.setattr(tbptt, "tape_pays", lambda *_: way == "tape")
        monkeypatch.setattr(tape, "BLOCK", 100)  # of 385 coordinates times 3 runs
    rule = RULES[name]()
    weights = draw(rule)
    estimate = TBPTT(unroll=7).estimate(
        rule, weights, Worker(SMALL, 3, Constant(20), 1, 0), meta_loss
    )
    expected, value = window_gradient_by_graph(
        rule, weights, Worker(SMALL, 3, Constant(20), 1, 0), 7, meta_loss, False
    )
    assert estimate.meta_loss == pytest.approx(value, rel=1e-5)
    idle = set()
    for key, grad in expected.items():
        scale = float(grad.norm())
        idle |= {key} if scale == 0 else set()
        # 1e-3: Adam's second moment moves the steps so little that rounding shows.
        assert float((estimate.grads[key] - grad).norm()) <= 1e-3 * scale, key
    # The floor and the brake of `default` may have nothing to do here, nor has the set of
    # convolutions; no pace is high yet; clipping begins after ten steps, see the next test.
    convolutions = {key for key in expected if key.startswith("conv.")}
    of_default = {"hand.log_floor", "hand.brake", "hand.log_clip", "hand.repay"}
    may_be_idle = {"default": of_default, "by_layer": convolutions}
    assert idle <= may_be_idle.get(name, set()), "weights without a gradient test nothing"


@pytest.mark.parametrize("way", ["kernels", "tape", "replay"])
def test_the_gradient_of_late_steps_knows_of_the_clipping(way, monkeypatch):
    if way != "kernels":
        monkeypatch.setattr(kernels, "available", lambda: False)
        monkeypatch.setattr(tbptt, "tape_pays", lambda *_: way == "tape")
    rule, key = Default(), "hand.log_clip"
    weights = draw(rule)
    weights[key] = weights[key] - math.log(4.0) / HAND_SCALE  # so that most gradients are clipped
    worker = Worker(SMALL, 3, Constant(20), 1, 0)
    estimate = TBPTT(unroll=16).estimate(rule, weights, worker, Sum())
    worker = Worker(SMALL, 3, Constant(20), 1, 0)
    expected, _ = window_gradient_by_graph(rule, weights, worker, 16, Sum(), False)
    assert float(expected[key].abs()) > 1e-3
    torch.testing.assert_close(estimate.grads[key], expected[key], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["l2l", "default"])
def test_a_tape_leaves_the_state_that_plain_steps_leave(name, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: False)
    rule = RULES[name]()
    carries = []
    for way in (True, False):
        monkeypatch.setattr(tbptt, "tape_pays", lambda *_, way=way: way)
        worker = Worker(SMALL, 3, Constant(20), 1, 0)
        for _ in range(2):
            TBPTT(unroll=3).estimate(rule, draw(rule), worker, Sum())
        carries.append(worker.carry)
    taped, plain = carries
    assert taped.state.keys() == plain.state.keys()
    for key, value in plain.state.items():
        # Rounding turns the vectors of a basis that few gradients have determined.
        torch.testing.assert_close(taped.state[key], value, rtol=1e-3, atol=1e-5)
        assert not taped.state[key].requires_grad
    torch.testing.assert_close(taped.theta, plain.theta)


def test_a_graph_that_is_too_large_is_not_recorded(monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: False)
    rule, worker = L2L(), Worker(SMALL, 1, Constant(20), 1, 0)
    carry = worker.current(rule)
    assert carry.theta.numel() == 385
    assert tbptt.tape_pays(rule, carry, 20)
    monkeypatch.setattr(tape, "MEMORY", 20 * 385 * 80 * tape.COPIES * 4 - 1)
    assert not tbptt.tape_pays(rule, carry, 20)


@pytest.mark.parametrize("name", RULES)
def test_second_derivatives_of_every_rule_are_those_of_the_unrolled_graph(name):
    rule, family = RULES[name](), Quadratic(dim=4, init_std=1.0)
    weights = draw(rule)
    estimate = TBPTT(unroll=5, second_derivatives=True).estimate(
        rule, weights, Worker(family, 2, Constant(5), 3, 0), Sum()
    )
    worker = Worker(family, 2, Constant(5), 3, 0)
    expected, _ = window_gradient_by_graph(rule, weights, worker, 5, Sum(), True)
    for key, grad in expected.items():
        assert float((estimate.grads[key] - grad).norm()) <= 1e-3 * float(grad.norm()), key


def test_second_derivatives_give_the_gradient_of_the_meta_loss_itself():
    """Central differences in float64 of the whole horizon's meta-loss."""
    rule, family = L2L(layers=1, hidden=3, preprocess="none"), Quadratic(dim=4, init_std=1.0)
    weights = {key: value.double() for key, value in draw(rule).items()}

    def worker() -> Worker:
        made = Worker(family, 2, Constant(6), 3, 0)
        made.current(rule)
        to_double(made)
        return made

    def to_double(made: Worker) -> None:
        runs = made.runs
        runs.initial = {key: value.double() for key, value in runs.initial.items()}
        runs.constants = {key: value.double() for key, value in runs.constants.items()}
        made.layout, made.carry = begin(rule, runs)

    estimate = TBPTT(unroll=6, second_derivatives=True).estimate(rule, weights, worker(), Sum())
    for key, value in weights.items():
        flat, index = value.flatten(), value.numel() // 2
        shifted = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[index] += sign * 1e-5
            trial = {**weights, key: moved.view_as(value)}
            shifted.append(window_gradient_by_graph(rule, trial, worker(), 6, Sum(), True)[1])
        slope = (shifted[0] - shifted[1]) / 2e-5
        assert float(estimate.grads[key].flatten()[index]) == pytest.approx(slope, rel=1e-5)


class BowlTask(Task):
    """f = theta^2 / 2, whose gradient is theta and whose curvature is one."""

    def init(self, generator):
        return {"theta": torch.randn(3, generator=generator, dtype=torch.float64)}, {}

    def loss(self, params, batch):
        return 0.5 * (params["theta"] ** 2).sum()


class Bowl(TaskFamily):
    name = "bowl"

    def sample(self, generator):
        return BowlTask()


def test_gradient_descent_on_a_bowl_has_its_closed_form_meta_gradient():
    """With step a: theta_t = (1 - a)^t theta_0, d sum f / d log a by hand."""
    rule = LearnableSGD(learning_rate=0.1)
    weights = {key: value.double() for key, value in draw(rule).items()}
    worker = Worker(Bowl(), 1, Constant(5), 0, 0)
    theta0 = worker.current(rule).theta
    estimate = TBPTT(unroll=5, second_derivatives=True).estimate(rule, weights, worker, Sum())
    energy, a = float((theta0**2).sum()), float(weights["log_lr"].exp())
    exact = sum(-a * t * (1 - a) ** (2 * t - 1) * energy for t in range(1, 6))
    assert float(estimate.grads["log_lr"]) == pytest.approx(exact, rel=1e-12)


def bowl_gradient(theta, a, beta, steps, limit):
    """Of the sum of the losses of one run with momentum, by log a; the adjoint limited."""
    path, momenta = [theta], [torch.zeros_like(theta)]
    for _ in range(steps):
        momenta.append(beta * momenta[-1] + path[-1])
        path.append(path[-1] - a * momenta[-1])
    total, adjoint, momentum_adjoint = 0.0, path[-1], torch.zeros_like(theta)
    for t in reversed(range(steps)):
        total -= a * float(momenta[t + 1] @ adjoint)
        through = momentum_adjoint - a * adjoint
        adjoint, momentum_adjoint = adjoint + through + path[t], beta * through
        size = float(adjoint.norm() * path[t].norm())
        if limit and size > limit:
            adjoint, momentum_adjoint = adjoint * limit / size, momentum_adjoint * limit / size
    return total


@pytest.mark.parametrize("limit", [0.0, 20.0, 1e12])
def test_a_limited_adjoint_scales_down_the_runs_that_explode_and_no_others(limit):
    rule = LearnableSGD(learning_rate=3.5, momentum=0.5)
    weights = {key: value.double() for key, value in draw(rule).items()}
    worker = Worker(Bowl(), 2, Constant(7), 0, 0)
    carry = worker.current(rule)
    carry.theta[1] *= 1e-5  # explodes as fast, from far below the limit
    runs = worker.runs
    runs.initial = {"theta": carry.theta.clone()}
    worker.layout, worker.carry = begin(rule, runs)
    estimator = TBPTT(unroll=7, second_derivatives=True, limit=limit)
    found = estimator.estimate(rule, weights, worker, Sum()).grads["log_lr"]
    a, beta = float(weights["log_lr"].exp()), float(weights["logit_momentum"].sigmoid())
    each = [bowl_gradient(theta, a, beta, 7, limit) for theta in carry.theta]
    free = [bowl_gradient(theta, a, beta, 7, 0.0) for theta in carry.theta]
    assert float(found) == pytest.approx(sum(each) / 2, rel=1e-9)
    assert (abs(each[0]) < 0.5 * abs(free[0])) == (limit == 20.0)
    assert each[1] == free[1]


def test_dropping_second_derivatives_is_a_different_gradient():
    rule, weights = L2L(), draw(L2L())
    results = [
        TBPTT(unroll=5, second_derivatives=flag).estimate(
            rule, weights, Worker(SMALL, 1, Constant(5), 1, 0), Sum()
        )
        for flag in (False, True)
    ]
    first, second = (result.grads["head.w"] for result in results)
    assert results[0].meta_loss == pytest.approx(results[1].meta_loss, rel=1e-5)
    assert float((first - second).norm()) > 1e-4 * float(second.norm())


def test_cotangent_of_a_step_sums_the_gradients_of_all_later_losses():
    weights = torch.tensor([[1.0], [2.0], [3.0]])
    grads = torch.tensor([[[1.0]], [[10.0]], [[100.0]]])
    assert cotangents(weights, grads).flatten().tolist() == [321.0, 320.0, 300.0]


def test_log_meta_loss_weighs_each_loss_by_its_inverse():
    losses = torch.tensor([[4.0], [0.5]])
    assert Log().step_weights(losses).flatten().tolist() == pytest.approx([0.125, 1.0])


def test_windows_go_on_where_the_last_one_ended_and_episodes_end_on_time():
    rule, weights = L2L(), draw(L2L())
    worker = Worker(SMALL, 2, Constant(12), 0, 0)
    steps = []
    for _ in range(4):
        TBPTT(unroll=5).estimate(rule, weights, worker, Sum())
        assert worker.carry is not None
        steps.append((worker.episode, worker.carry.step))
    assert steps == [(0, 5), (0, 10), (0, 12), (1, 5)]


def test_a_run_does_not_depend_on_the_runs_beside_it():
    rule, weights = L2L(), draw(L2L())

    def final(seeds):
        runs = Runs(SMALL.sample(torch.Generator()), seeds)
        layout, carry = begin(rule, runs)
        for _ in range(4):
            carry = advance(rule, weights, runs, layout, carry)
        return carry.loss

    assert torch.allclose(final([5, 6, 7])[1], final([6])[0], rtol=1e-5)
    assert not torch.allclose(final([5, 6])[0], final([5, 6])[1], rtol=1e-3)


def test_perturbed_weights_share_start_and_minibatches():
    rule, task = L2L(), SMALL.sample(torch.Generator())
    weights = [draw(rule, seed) for seed in (0, 1)]
    together = {key: torch.stack([w[key] for w in weights]) for key in weights[0]}
    runs = Runs(task, [3, 4], perturbations=2)
    layout, carry = begin(rule, runs)
    for _ in range(3):
        carry = advance(rule, together, runs, layout, carry)
    for k in range(2):
        alone = Runs(task, [3, 4])
        layout_k, carry_k = begin(rule, alone)
        for _ in range(3):
            carry_k = advance(rule, weights[k], alone, layout_k, carry_k)
        assert torch.allclose(carry.loss[:, k], carry_k.loss, rtol=1e-4)


def test_rules_with_per_tensor_stages_see_each_tensor():
    """Steps proportional to each tensor's gradient norm, against a loop over the tensors."""

    class Normed(LearnableSGD):
        name = "normed"
        summary_size = 1

        def describe(self, shape):
            return (float(len(shape)),)

        def summarize(self, coords, state):
            return coords.grad.square().sum(-1, keepdim=True)

        def control(self, sums, facts, state, clock, weights):
            return sums.sqrt() * facts, state

        def update(self, coords, state, signals, weights):
            return -signals[..., 0, :] * coords.grad, {}

    rule = Normed()
    runs = Runs(SMALL.sample(torch.Generator()), [0, 1])
    layout, carry = begin(rule, runs)
    after = layout.split(advance(rule, draw(rule), runs, layout, carry).theta)
    before, grads = layout.split(carry.theta), layout.split(carry.grad)
    assert {key: value.shape for key, value in before.items()} == {
        key: value.shape for key, value in runs.initial.items()
    }
    for key, theta in before.items():
        assert torch.equal(theta, runs.initial[key])
        rank = theta.dim() - 1
        norms = grads[key].flatten(1).norm(dim=1).view(-1, *[1] * rank)
        assert torch.allclose(after[key], theta - rank * norms * grads[key], rtol=1e-5, atol=1e-8)


def test_a_diverging_window_is_reported_and_ends_the_episode():
    rule = LearnableSGD(learning_rate=1e3)
    worker = Worker(Quadratic(), 2, Constant(100), 0, 0)
    estimate = TBPTT(unroll=20).estimate(rule, draw(rule), worker, Sum())
    assert estimate.non_finite == 2
    assert worker.carry is None
    assert all(float(grad.abs().max()) == 0 for grad in estimate.grads.values())


def test_the_first_episode_of_a_staggered_worker_is_cut_at_a_random_step():
    rule, family = LearnableSGD(), Quadratic()
    stops = []
    for index in range(30):
        worker = Worker(family, 1, Constant(100), 0, index, stagger=True)
        worker.current(rule)
        stops.append(worker.stop_at)
        assert worker.total_steps == 100
        worker.abandon()
        worker.current(rule)
        assert worker.stop_at == 100
    assert min(stops) < 25
    assert max(stops) > 75


def test_a_resumed_worker_ends_its_episode_at_the_old_length_and_keeps_its_growth():
    rule, worker = LearnableSGD(), Worker(Quadratic(), 1, Constant(10), 0, 0)
    worker.current(rule)
    resumed = Worker(Quadratic(), 1, Constant(10), 0, 0)
    resumed.growth = 3.0
    resumed.load_state_dict(worker.state_dict(), rule)
    assert resumed.total_steps == 10
    resumed.abandon()
    resumed.current(rule)
    assert resumed.total_steps == 30


def test_an_episode_of_one_step_is_not_cut():
    worker = Worker(Quadratic(), 1, Constant(1), 0, 0, stagger=True)
    worker.current(LearnableSGD())
    assert worker.stop_at == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_gives_the_full_horizon_gradient_of_backpropagation():
    """RTRL is forward mode: Jacobian-vector products of the whole unroll, one for each weight."""
    rule, family = L2L(layers=1, hidden=2, preprocess="none"), Quadratic(dim=2, init_std=1.0)
    weights = draw(rule)
    estimate = TBPTT(unroll=5, second_derivatives=True).estimate(
        rule, weights, Worker(family, 1, Constant(5), 0, 0), Sum()
    )

    def meta_loss(values: Weights) -> torch.Tensor:
        worker = Worker(family, 1, Constant(5), 0, 0)
        carry, losses = worker.current(rule), []
        for _ in range(5):
            carry = advance(
                rule, values, worker.runs, worker.layout, carry, second_derivatives=True
            )
            losses.append(carry.loss)
        return torch.stack(losses).sum(0).mean()

    for key, value in weights.items():
        for index in range(0, value.numel(), 3):
            tangents = {k: torch.zeros_like(v) for k, v in weights.items()}
            tangents[key].view(-1)[index] = 1.0
            slope = torch.func.jvp(meta_loss, (weights,), (tangents,))[1]
            expected = estimate.grads[key].flatten()[index]
            torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-6)


def test_heavy_tailed_horizons_have_their_tail():
    rng = torch.Generator().manual_seed(0)
    drawn = [HeavyTailed(low=10, high=10**6, tail=1.0).sample(rng) for _ in range(4000)]
    assert min(drawn) >= 10
    assert sum(steps > 100 for steps in drawn) / 4000 == pytest.approx(0.1, abs=0.02)
    assert HeavyTailed(low=10, high=12).sample(rng) <= 12


def test_log_uniform_horizons_stay_in_range_and_spread_evenly_in_the_logarithm():
    rng = torch.Generator().manual_seed(0)
    drawn = [LogUniform(10, 1000).sample(rng) for _ in range(2000)]
    assert min(drawn) >= 10
    assert max(drawn) <= 1000
    assert sum(steps < 100 for steps in drawn) / 2000 == pytest.approx(0.5, abs=0.04)
    assert math.isclose(LogUniform(7, 7).sample(rng), 7)


def test_smoothed_features_give_the_same_gradient_with_and_without_kernels(monkeypatch):
    rule = L2L(layers=1, hidden=6)
    weights, found = draw(rule), []
    for available in (True, False):
        if not available:
            monkeypatch.setattr(kernels, "available", lambda: False)
        estimator = TBPTT(unroll=9, second_derivatives=True, smoothing=0.3)
        worker = Worker(SMALL, 3, Constant(9), 1, 0)
        found.append(estimator.estimate(rule, weights, worker, Sum(late=1.0)).grads)
    exact = TBPTT(unroll=9, second_derivatives=True).estimate(
        rule, weights, Worker(SMALL, 3, Constant(9), 1, 0), Sum(late=1.0)
    )
    for key, value in found[0].items():
        size = float(value.abs().max())
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-3 * size)
        assert (exact.grads[key] - value).abs().max() > 0.01 * size  # so it does make a difference


@pytest.mark.parametrize(("steps", "tail"), [(4, 1), (19, 2), (20, 2), (24, 2)])
def test_the_end_of_a_window_is_the_nearest_number_of_steps(steps: int, tail: int):
    losses = torch.arange(1.0, steps + 1)
    torch.testing.assert_close(LogTail(0.1, floor=0.0)(losses), losses[-tail:].mean().log())


def test_gradients_that_are_always_zero_are_smoothed_too():
    rule = L2L(layers=1, hidden=2)
    carry = Worker(SMALL, 2, Constant(9), 1, 0).current(rule)
    widths = smoothing_widths([carry._replace(grad=torch.zeros_like(carry.grad))], 0.3)
    assert (widths > 0).all()


def test_later_losses_weigh_more():
    losses = torch.arange(1.0, 9.0).view(4, 2)
    expected = (losses * torch.tensor([[0.25], [0.5], [0.75], [1.0]]) ** 2).sum(0)
    torch.testing.assert_close(Sum(late=2.0)(losses), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"smoothing": 0.5},
        {"smoothing": -1.0, "second_derivatives": True},
        {"tell_horizon": 2.0},
        {"limit": 1.0},
        {"limit": -1.0, "second_derivatives": True},
    ],
)
def test_what_truncated_backpropagation_cannot_do_is_refused(wrong):
    with pytest.raises(ValueError, match=r"smoothing|tell_horizon|limit"):
        TBPTT(**wrong)
