"""The kernels of the rule `default` against the rule itself in float64, on every instruction set.

Expected rounding: activations to 4e-7, roots, logarithms and powers to a few units in float32's
last place, the controller's LSTM and head summed in float32: signals differ by under 2e-5 of their
size (of 0.1 where smaller), h and c by under 3e-5, steps by under 1e-5 of `LARGEST` times their
length.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.kernels import default_runs
from learned_optim.meta_training import fused
from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.unroll import apply_rule, initial_state, make_clock
from learned_optim.rules import Coordinates, Default, State
from learned_optim.rules.default import (
    ADVICE,
    BENDS,
    FACTS,
    INPUTS,
    LARGEST,
    SIGNALS,
    SUMS,
    TELLS,
)
from learned_optim.rules.hand import HAND, hand_shapes

SHAPES = ((6, 4), (1,), (), (63,), (8, 8), (65,), (0,), (3, 2, 2, 2), (2049,), (7, 31))
LEAD = (2, 3)
HAND_SHAPES = hand_shapes()


pytestmark = pytest.mark.usefixtures("built_kernels")


class Case:
    """Runs in flight, `LEAD` of them, each with weights of its own."""

    def __init__(self, rule: Default, shapes=SHAPES, lead=LEAD) -> None:
        self.rule = rule
        self.rng = torch.Generator().manual_seed(1)
        drawn = rule.init_weights(self.rng)
        # Little for the hand rule: 1 - beta2 loses as many digits as beta2 is close to 1.
        self.weights = {
            key: value + (0.05 if key in HAND_SHAPES else 0.3) * self.randn(*lead, *value.shape)
            for key, value in drawn.items()
        }
        params = {str(i): self.randn(*lead, *shape) for i, shape in enumerate(shapes)}
        self.layout = Layout(rule, params, len(lead))
        n = self.layout.coordinates
        # Gradients of all sizes, and some that are zero.
        grad = self.randn(*lead, n) * 10 ** (-8 * torch.rand(n, generator=self.rng))
        grad[..., ::7] = 0
        # As if gradients were seen in a basis: they lie otherwise to what is owed.
        plain = self.randn(*lead, n)
        self.coords = Coordinates(grad, self.layout.join(params), plain=plain)
        state = initial_state(rule, grad, self.layout)
        self.state = {key: state[key] for key in rule.state_spec}  # of bases kernels know nothing
        self.state["moments"][..., 0, :] = 0.3 * grad.flip(-1)
        self.state["moments"][..., 1, :] = grad.square()
        self.state["moments"][..., 2, :] = 0.1 * self.randn(*lead, n)
        # Paces low and high, and scales that have grown since or shrunk.
        self.state["gauge"][..., 1, :] = self.randn(*lead, len(shapes))
        self.state["gauge"][..., 3, :] = self.randn(*lead, len(shapes)).exp()
        # And outlooks for which the pace falls at its full rate, at a part of it, and not.
        self.state["gauge"][..., 2, :] = -0.5
        self.state["gauge"][..., 4, :] = 0.03 * self.randn(*lead, len(shapes))
        # And largest gradients beside which these are rounding, or not.
        self.state["gauge"][..., 5, :] = 1e4 * self.randn(*lead, len(shapes)).exp()
        if rule.hidden:
            self.state["cell"] = self.randn(*self.state["cell"].shape).clamp(-0.9, 0.9)

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.rng)

    def clock(self, step: int, total_steps: int | None, like: Tensor):
        return make_clock(step, total_steps, self.layout, like)

    @torch.no_grad()
    def found(self, step: int, total_steps: int | None = None) -> tuple[Tensor, Tensor, State]:
        """Step, signals and state by the kernels."""
        moved = fused.move(
            self.rule,
            self.weights,
            self.coords,
            self.state,
            self.clock(step, total_steps, self.coords.grad),
            self.layout.facts,
            self.layout.sizes,
        )
        assert moved is not None
        return moved

    @torch.no_grad()
    def expected(self, step: int, total_steps: int | None = None) -> tuple[Tensor, Tensor, State]:
        """The same by the rule in float64."""
        grad, param, plain = self.coords.grad, self.coords.param, self.coords.plain
        assert plain is not None
        coords = Coordinates(grad.double(), param.double(), plain=plain.double())
        state, weights = ({k: v.double() for k, v in x.items()} for x in (self.state, self.weights))
        rule, layout = self.rule, self.layout
        per_tensor, own = (
            {key: state[key] for key in rule.keys_per(per)} for per in ("tensor", "coordinate")
        )
        sums, clock = (
            layout.summarize(rule, coords, own),
            self.clock(step, total_steps, coords.grad),
        )
        facts = layout.facts.double()
        signals, per_tensor = rule.control(sums, facts, per_tensor, clock, weights)
        steps, own = rule.update(coords, own, layout.spread(signals), weights)
        return steps, signals, per_tensor | own


def assert_alike(case: Case, found, expected) -> None:
    steps, signals, state = found
    wanted_steps, wanted_signals, wanted = expected
    # The scales of an empty tensor are one over what counts as zero, another number in float64.
    full = torch.tensor(case.layout.sizes) > 0
    scale = wanted_signals.abs().clamp_min(0.1)
    assert ((signals - wanted_signals).abs() / scale)[..., full].max() < 2e-5
    length = case.layout.spread(wanted_signals)[..., SIGNALS.index("length"), :]
    assert ((steps - wanted_steps).abs() / (LARGEST * length)).max() < 1e-5
    assert state.keys() == wanted.keys()
    sizes = case.coords.grad.abs() + case.state["moments"][..., 0, :].abs() + 1e-30
    m, v, owed = (state["moments"] - wanted["moments"]).abs().unbind(-2)
    assert not owed.any()  # the caller's to change
    assert (m / sizes).max() < 1e-6
    assert (v / (sizes.square() + 1e-36)).max() < 1e-6
    for key in wanted.keys() - {"moments"}:
        torch.testing.assert_close(state[key].double(), wanted[key], atol=3e-5, rtol=1e-6)


def test_the_kernels_sizes_are_the_rules():
    assert len(SUMS) == default_runs.SUMS
    assert len(SIGNALS) == default_runs.SIGNALS
    assert len(FACTS) == default_runs.FACTS
    assert Default().state_spec["moments"].rows == default_runs.MOMENTS
    assert sum(len(values) for values in HAND.values()) == default_runs.HAND
    sizes = (default_runs.TELLS, default_runs.ADVICE, default_runs.INPUTS, default_runs.BENDS)
    assert sizes == (TELLS, ADVICE, INPUTS, BENDS)
    for hidden, units in ((0, 3), (1, 0), (5, 12)):
        shapes = Default(hidden=hidden, controller=units).weight_shapes()
        count = sum(torch.Size(shape).numel() for shape in shapes.values())
        assert kernels.default_weight_count(units, hidden) == count


@pytest.mark.parametrize("hidden", [0, 1, 3, 4, 8, 9])
def test_a_step_equals_the_rules(level, hidden):
    case = Case(Default(hidden=hidden))
    assert_alike(case, case.found(30), case.expected(30))


@pytest.mark.parametrize("units", [0, 1, 5, 12])
@pytest.mark.parametrize(
    ("step", "total_steps"),
    [(1, None), (5000, None), (1, 100), (99, 100), (200, 100), (5000, 9000)],
)
def test_the_controller_equals_the_rules_at_all_times(level, units, step, total_steps):
    case = Case(Default(hidden=0, controller=units), shapes=((6, 4), (1,), (65,)))
    assert_alike(case, case.found(step, total_steps), case.expected(step, total_steps))


@pytest.mark.parametrize("step", [2, 10, 11])
@pytest.mark.parametrize("total_steps", [None, 40, 150, 300])
def test_the_brake_of_first_steps_equals_the_rules(level, step, total_steps):
    case = Case(Default(hidden=0, controller=0), shapes=((6, 4), (9,), (65,)))
    case.state["gauge"].zero_()  # so that a brake shows
    # Squares before of a tenth, a half and all of what the last step's would have come to.
    shares = case.layout.spread(torch.tensor([[0.1, 0.5, 1.0]]))
    beta2 = torch.tensor(HAND["logit_beta2"]).sigmoid().item()
    before = case.coords.grad.square() * (1 - beta2 ** (step - 1))
    case.state["moments"][..., 1, :] = before * shares
    found, expected = case.found(step, total_steps), case.expected(step, total_steps)
    assert_alike(case, found, expected)
    paces = expected[2]["gauge"][..., 1, :]
    brakes = total_steps in (40, 150) and step <= 10
    assert bool((paces[..., 0] < -0.2).any()) == brakes
    assert not bool((paces[..., 1:] < -0.2).any())


def test_more_tensors_than_a_tile_has_lanes():
    case = Case(Default(), shapes=((3, 2), (5,)) * 35)
    assert_alike(case, case.found(30), case.expected(30))


@torch.no_grad()
def test_only_a_consumed_state_is_overwritten_and_the_result_is_the_same_bit_for_bit():
    case = Case(Default(hidden=4, basis=False))
    before = {key: value.clone() for key, value in case.state.items()}
    arguments = (case.rule, case.weights, case.layout, case.coords, case.state)
    clock = case.clock(5, 100, case.coords.grad)
    step, kept = apply_rule(*arguments, clock)
    assert all(torch.equal(case.state[key], before[key]) for key in before)
    again, consumed = apply_rule(*arguments, clock, consume=True)
    assert torch.equal(step, again)
    assert all(torch.equal(kept[key], consumed[key]) for key in kept)
    assert consumed["cell"].data_ptr() == case.state["cell"].data_ptr()
    assert not torch.equal(case.state["cell"], before["cell"])


def test_one_set_of_weights_serves_all_runs():
    case = Case(Default(), lead=(3,))
    case.weights = {key: value[0] for key, value in case.weights.items()}
    assert_alike(case, case.found(30), case.expected(30))


def test_a_rule_that_derives_from_default_is_left_to_torch():
    class Other(Default):
        pass

    case = Case(Default(), shapes=((3,),))
    clock = case.clock(1, None, case.coords.grad)
    arguments = (case.weights, case.coords, case.state, clock, case.layout.facts, (3,))
    with torch.no_grad():
        assert fused.move(case.rule, *arguments) is not None
        assert fused.move(Other(), *arguments) is None


@torch.no_grad()
def test_threads_do_not_change_a_bit():
    case = Case(Default(), shapes=((40_000,), (3,), (20_000,)), lead=(2,))
    flat = torch.cat([value.flatten(1) for value in case.weights.values()], dim=1)
    clock, found = case.clock(7, None, case.coords.grad), []
    for threads in (1, 3):
        state = kernels.DefaultState(
            *(case.state[key].clone() for key in ("moments", "cell", "gauge", "controller"))
        )
        result = kernels.default_step_(
            case.coords.grad,
            case.coords.grad,
            case.coords.param,
            state,
            flat,
            sizes=case.layout.sizes,
            facts=case.layout.facts.contiguous(),
            step=clock.step,
            units=12,
            hidden=4,
            threads=threads,
        )
        found.append((*result, *state))
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (3, 4)}, r"sizes must add up to 8 but are \[3, 4\]"),
        ({"sizes": (9, -1)}, "sizes must add up to 8"),
        ({"grads": torch.zeros(8)}, r"grads must be \(P, N\)"),
        ({"plain": torch.zeros(1, 7)}, r"plain must have shape \(1, 8\)"),
        ({"moments": torch.zeros(2, 8)}, r"moments must have shape \(1, 3, 8\)"),
        ({"cell": torch.zeros(1, 4, 8)}, r"cell must have shape \(1, 8, 8\)"),
        ({"controller": torch.zeros(1, 4, 2)}, r"controller must have shape \(1, 6, 2\)"),
        ({"facts": torch.zeros(2, 5)}, r"facts must have shape \(5, 2\)"),
        ({"step": torch.zeros(2).double()}, "step must be float32"),
        ({"total_steps": torch.zeros(1)}, r"total_steps must have shape \(2,\)"),
        ({"weights": torch.zeros(1, 3)}, "weights must have shape"),
        ({"hidden": -1}, r"hidden must be in \[0, 64\] but is -1"),
        ({"units": 129}, r"units must be in \[0, 128\] but is 129"),
    ],
)
def test_wrong_tensors_are_refused(change, message):
    state = {
        "moments": torch.zeros(1, 3, 8),
        "cell": torch.zeros(1, 8, 8),
        "gauge": torch.zeros(1, 6, 2),
        "controller": torch.zeros(1, 6, 2),
    }
    arguments = {
        "grads": torch.zeros(1, 8),
        "plain": torch.zeros(1, 8),
        "params": torch.zeros(1, 8),
        "sizes": (5, 3),
        "facts": torch.zeros(5, 2),
        "step": torch.zeros(2),
        "weights": torch.zeros(1, kernels.default_weight_count(3, 4)),
        "units": 3,
        "hidden": 4,
    }
    arguments |= {key: value for key, value in change.items() if key not in state}
    state |= {key: value for key, value in change.items() if key in state}
    with pytest.raises(ValueError, match=message):
        kernels.default_step_(state=kernels.DefaultState(**state), **arguments)
