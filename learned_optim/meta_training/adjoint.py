"""The exact gradient of a window, second derivatives included, by a reverse sweep.

The adjoint recursion of the inner loop `theta_{t+1} = theta_t + step_t`, written out:

    lambda_T = w_T g_T
    (d phi, d g, d theta, sigma_t) = VJP of the rule at t, of (lambda_{t+1}, sigma_{t+1})
    lambda_t = lambda_{t+1} + d theta + H_t d g + w_t g_t

with `g_t` the optimizee's gradient, `H_t` its Hessian and `sigma` the adjoint of the rule's state.
Equal to backpropagation through the unrolled loop, but each step is differentiated alone: the
rule's part by a kernel where there is one, the optimizee's as a Hessian-vector product, and no
graph outlives its step.

**Smoothing.** That gradient is exact and yet useless where the features of a rule are steep. Those
of the paper's rule change by 2 within 1e-4 around a gradient of zero: a gradient falls into that
strip once in hundreds of steps, with a slope of 22,000 then, and outside of it the derivative knows
nothing of the sign. Over 100 steps of the MNIST networks the products of such slopes have norms of
10^6, and what they say of one episode has nothing to do with the next. But the meta-loss is a mean
over minibatches, whose noise takes gradients across zero all the time, and as such it is smooth.
So `smoothing` takes the features' derivative as the mean over noise of some width has it
(`features.log_sign_smoothed`), at the values that they really had. Biased, by what the width blurs
and by the curvature of the gates between the two signs; but whole episodes then have norms of tens,
and agree (`benchmarks/results/paper_smoothing.json`).

**Limit.** Where the training itself is at the edge of stability, the adjoint grows from step to
step on its way back whatever the features are, and a run whose adjoint has grown a thousandfold
says nothing of the meta-parameters. `limit` bounds, at each step and in each run, the norm of the
adjoint times that of the parameters (for a logarithmic meta-loss: its change if all parameters
change by their own size), and scales the state's adjoint along. So the earlier steps of such a
run count less, and those of a tame one in full: truncation where it is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.meta_training import fused
from learned_optim.meta_training.by_part import Routing
from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.unroll import Carry, Runs, apply_rule, make_clock
from learned_optim.rules import PARTS, ByLayer, Coordinates, State, UpdateRule, Weights

NARROWEST = 1e-5  # of the widths: gradients that are always zero have none of their own


def window_gradient(
    rule: UpdateRule,
    weights: Weights,
    runs: Runs,
    layout: Layout,
    carries: Sequence[Carry],
    step_weights: Tensor,
    total_steps: int | None = None,
    pulls: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    limit: float = 0.0,
) -> Weights:
    """Gradient of `sum_t w_t f_t(theta_t)` with respect to the meta-parameters.

    Args:
        rule: the rule.
        weights: its meta-parameters, the same for all runs.
        runs: whose window it is.
        layout: of the coordinates.
        carries: of times 0 ... T of the window, each with its minibatch.
        step_weights: `(T, *lead)`, the weights w of `f_1 ... f_T`.
        total_steps: the horizon as the rule was told it.
        pulls: `(T, *lead, N)`, gradients with respect to the steps of what is added to that sum.
        smoothing: of the features, see the module; 0 for their own derivative.
        limit: of the adjoint of each run, see the module; 0 for none.
    """
    total = {key: torch.zeros_like(value) for key, value in weights.items()}
    last = carries[-1]
    theta_bar = step_weights[-1].unsqueeze(-1) * last.grad
    state_bar = {key: torch.zeros_like(value) for key, value in last.state.items()}
    widths = smoothing_widths(carries[:-1], smoothing) if smoothing else None
    for t in reversed(range(len(carries) - 1)):
        carry = carries[t]
        step_bar = theta_bar if pulls is None else theta_bar + pulls[t]
        moment = Moment(carry, step_bar, state_bar, widths)
        grads, grad_bar, feature_bar, state_bar = _rule_vjp(
            rule, weights, layout, moment, total_steps
        )
        for key, value in grads.items():
            total[key] += value
        if t == 0:
            break
        curved = runs.hessian_product(
            layout.split(carry.theta), carry.batch, layout.split(grad_bar)
        )
        here = step_weights[t - 1].unsqueeze(-1) * carry.grad
        theta_bar = theta_bar + feature_bar + layout.join(curved) + here
        if limit:
            faded = fading(theta_bar, carry.theta, limit)
            theta_bar = theta_bar * faded
            state_bar = {key: value * faded.unsqueeze(-1) for key, value in state_bar.items()}
    return total


def fading(theta_bar: Tensor, theta: Tensor, limit: float) -> Tensor:
    """The factor, `(*lead, 1)`, that brings each run's adjoint to its limit; 1 below it.

    It leaves non-finite adjoints non-finite, for the estimator to notice.
    """
    size = theta_bar.norm(dim=-1, keepdim=True) * theta.norm(dim=-1, keepdim=True)
    return (limit / size).clamp_max(1)


def smoothing_widths(carries: Sequence[Carry], smoothing: float) -> Tensor:
    """How far the features of each coordinate's gradient are smoothed, `(*lead, N)`.

    `smoothing` times the root mean square of the gradients that it sees in the window.
    """
    squares = torch.stack([carry.grad for carry in carries]).square_()
    return squares.mean(0).sqrt_().mul_(smoothing).clamp_(min=NARROWEST)


class Moment(NamedTuple):
    """A step of the rule on the way back.

    Attributes:
        carry: what the step began with.
        step_bar: cotangent of the step, `(*lead, N)`.
        state_bar: cotangents of the state after it.
        widths: see `smoothing_widths`, or None.
    """

    carry: Carry
    step_bar: Tensor
    state_bar: State
    widths: Tensor | None

    def of(self, routing: Routing, part: str) -> Moment:
        """The same of one part's coordinates."""

        def take(state: State) -> State:
            return {key: routing.take(value, part) for key, value in state.items()}

        carry = self.carry
        return Moment(
            carry._replace(
                theta=routing.take(carry.theta, part),
                grad=routing.take(carry.grad, part),
                state=take(carry.state),
            ),
            routing.take(self.step_bar, part),
            take(self.state_bar),
            None if self.widths is None else routing.take(self.widths, part),
        )


def _rule_vjp(
    rule: UpdateRule, weights: Weights, layout: Layout, moment: Moment, total_steps: int | None
) -> tuple[Weights, Tensor, Tensor, State]:
    """Cotangents of weights, gradient, parameters and state, from those of step and new state."""
    if isinstance(rule, ByLayer):
        return _parts_vjp(rule, weights, layout, moment, total_steps)
    carry, step_bar, state_bar, widths = moment
    compiled = fused.step_vjp(rule, weights, carry.grad, carry.state, step_bar, state_bar, widths)
    if compiled is not None:
        weight_bar, grad_bar, state_bar = compiled
        return weight_bar, grad_bar, torch.zeros_like(carry.theta), state_bar
    leaves = [
        tensor.detach().requires_grad_()
        for tensor in (*weights.values(), carry.grad, carry.theta, *carry.state.values())
    ]
    named, (grad, theta), entries = (
        leaves[: len(weights)],
        leaves[len(weights) : len(weights) + 2],
        leaves[len(weights) + 2 :],
    )
    clock = make_clock(carry.step + 1, total_steps, layout, carry.loss)
    with torch.enable_grad():
        step, state = apply_rule(
            rule,
            dict(zip(weights, named, strict=True)),
            layout,
            Coordinates(grad, theta, widths),
            dict(zip(carry.state, entries, strict=True)),
            clock,
        )
    outputs = [(step, step_bar), *((state[key], state_bar[key]) for key in carry.state)]
    outputs = [(value, bar) for value, bar in outputs if value.requires_grad]
    bars = torch.autograd.grad(
        [value for value, _ in outputs],
        leaves,
        [bar for _, bar in outputs],
        allow_unused=True,
        materialize_grads=True,
    )
    size = len(weights)
    return (
        dict(zip(weights, bars[:size], strict=True)),
        bars[size],
        bars[size + 1],
        dict(zip(carry.state, bars[size + 2 :], strict=True)),
    )


def _parts_vjp(
    rule: ByLayer, weights: Weights, layout: Layout, moment: Moment, total_steps: int | None
) -> tuple[Weights, Tensor, Tensor, State]:
    """`_rule_vjp`, each part on its own coordinates."""
    routing, sets = Routing(rule, layout.shapes, layout.sizes), rule.split(weights)
    found = {
        part: _rule_vjp(rule.part, sets[part], layout, moment.of(routing, part), total_steps)
        for part in PARTS
    }
    return (
        rule.joined({part: bars[0] for part, bars in found.items()}),
        routing.put({part: bars[1] for part, bars in found.items()}),
        routing.put({part: bars[2] for part, bars in found.items()}),
        {
            key: routing.put({part: bars[3][key] for part, bars in found.items()})
            for key in moment.state_bar
        },
    )
