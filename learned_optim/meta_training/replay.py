"""Backpropagation through a window without a graph through the optimizee.

The paper drops the derivative of the optimizee's gradients with respect to the meta-parameters.
Then `theta_t = theta_0 + sum of steps` is the only path from a step to a later loss, so

    d meta-loss / d step_t = sum over u > t of w_u * grad f_u(theta_u) = cotangent_t,

known once the window has run without grad. What remains is a vector-Jacobian product of the rule
alone, coordinate by coordinate: it needs no graph over the optimizee, and it can be computed in
blocks of coordinates that stay in the cache, by the compiled kernel where there is one. On a
784-20-10 network the kernel makes it four times as fast as differentiating the unrolled loop of
torch.nn.LSTMCell (`benchmarks/results/meta_training_throughput.json`). Without it `tape` is faster,
and the replay is for windows whose graph would not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.meta_training import fused
from learned_optim.meta_training.by_part import Routing
from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.unroll import apply_rule, make_clock
from learned_optim.rules import PARTS, ByLayer, Coordinates, State, UpdateRule, Weights

BLOCK = 1024  # coordinates; 512-2048 measured alike for 2 x 20 units over 20 steps


class Recording(NamedTuple):
    """What the rule saw over a window of T steps.

    Attributes:
        grads: `(T, *lead, N)`, the gradients.
        params: `(T, *lead, N)`, the parameters.
        cotangents: `(T, *lead, N)`, `d meta-loss / d step`.
        state: the rule's state before the first step.
        layout: of the coordinates.
        first_step: number of the first update, 1 at the start of an episode.
        total_steps: the horizon as the rule is told it.
    """

    grads: Tensor
    params: Tensor
    cotangents: Tensor
    state: State
    layout: Layout
    first_step: int
    total_steps: int | None


def cotangents(step_weights: Tensor, grads: Tensor) -> Tensor:
    """`d meta-loss / d step_t`.

    Args:
        step_weights: `(T, *lead)`, the weights w of `f_1 ... f_T`.
        grads: `(T, *lead, N)`, the gradients of `f_1 ... f_T` at `theta_1 ... theta_T`.

    Returns:
        `(T, *lead, N)`: for update t the sum over all losses after it.
    """
    weighted = step_weights.unsqueeze(-1) * grads
    return weighted.flip(0).cumsum(0).flip(0)


def replay(rule: UpdateRule, weights: Weights, recording: Recording) -> Weights:
    """Gradient of `sum_t <cotangent_t, step_t>` with respect to the meta-parameters."""
    if isinstance(rule, ByLayer):
        return _replay_parts(rule, weights, recording)
    compiled = fused.vjp(rule, weights, recording.grads, recording.state, recording.cotangents)
    if compiled is not None:
        return compiled
    leaves = {key: value.detach().requires_grad_() for key, value in weights.items()}
    for block in _blocks(rule, recording):
        with torch.enable_grad():
            _objective(rule, leaves, block).backward()
    return {
        key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for key, leaf in leaves.items()
    }


def sampled(rule: UpdateRule, recording: Recording, count: int, rng: torch.Generator) -> Recording:
    """At most `count` coordinates of each tensor, the cotangents scaled so that the mean stays.

    Raises:
        ValueError: the rule is not coordinatewise.
    """
    if not rule.coordinatewise:
        raise ValueError(f"sample is for coordinatewise rules, which {rule.name} is not")
    first, picks, scales = 0, [], []
    for size in recording.layout.sizes:
        picked = torch.randperm(size, generator=rng)[:count]
        picks.append(first + picked)
        scales.append(torch.full((len(picked),), size / max(1, len(picked))))
        first += size
    index, scale = (torch.cat(x).to(recording.grads.device) for x in (picks, scales))
    return recording._replace(
        grads=recording.grads[..., index],
        params=recording.params[..., index],
        cotangents=recording.cotangents[..., index] * scale,
        state={key: value[..., index].contiguous() for key, value in recording.state.items()},
        layout=Layout(rule, {"sample": recording.params.new_zeros(len(index))}, 0),
    )


def _replay_parts(rule: ByLayer, weights: Weights, recording: Recording) -> Weights:
    """`replay`, each part on its own coordinates."""
    layout, sets = recording.layout, rule.split(weights)
    routing = Routing(rule, layout.shapes, layout.sizes)
    gradients = {}
    for part in PARTS:
        own = recording._replace(
            grads=routing.take(recording.grads, part),
            params=routing.take(recording.params, part),
            cotangents=routing.take(recording.cotangents, part),
            state={key: routing.take(value, part) for key, value in recording.state.items()},
        )
        gradients[part] = replay(rule.part, sets[part], own)
    return rule.joined(gradients)


def _objective(rule: UpdateRule, weights: Weights, block: Recording) -> Tensor:
    state, total = block.state, block.grads.new_zeros(())
    for t in range(block.grads.shape[0]):
        clock = make_clock(block.first_step + t, block.total_steps, block.layout, total)
        coords = Coordinates(block.grads[t], block.params[t])
        step, state = apply_rule(rule, weights, block.layout, coords, state, clock)
        total = total + (step * block.cotangents[t]).sum()
    return total


def _blocks(rule: UpdateRule, recording: Recording) -> Iterator[Recording]:
    if not rule.coordinatewise:
        yield recording
        return
    layout = Layout(rule, {"all": recording.grads.new_zeros(1)}, 0)  # one tensor of any length
    grads, params, wanted = (
        series.flatten(1).split(BLOCK, dim=-1)
        for series in (recording.grads, recording.params, recording.cotangents)
    )
    states = {
        key: value.movedim(-2, 0).flatten(1).split(BLOCK, dim=-1)
        for key, value in recording.state.items()
    }
    for i in range(len(grads)):
        state = {key: blocks[i] for key, blocks in states.items()}
        yield recording._replace(
            grads=grads[i], params=params[i], cotangents=wanted[i], state=state, layout=layout
        )
