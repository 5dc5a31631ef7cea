"""A window in one pass: the rule's graph is kept from step to step instead of made again.

Like `replay`, from which it differs in where the graph comes from: there the window runs without
one, and the rule is applied a second time to differentiate it. Here it is recorded at once, in
blocks of coordinates too, which saves that second pass and costs the memory of the whole graph:
`fits` tells whether that is bearable. The optimizee is in neither graph.

On a 784-20-10 network it is 1.3 times as fast as differentiating the unrolled loop of
torch.nn.LSTMCell, the replay without kernels 0.8 times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.unroll import Carry, apply_rule, make_clock
from learned_optim.rules import Coordinates, State, UpdateRule, Weights

BLOCK = 4096  # coordinates; of 512 ... 16384 the fastest for 2 x 20 units over 20 steps
MEMORY = 2**30  # bytes of graph
# Tensors of the state's size that a step leaves in the graph, from above: the LSTM leaves about 5.
COPIES = 8


def fits(rule: UpdateRule, carry: Carry, steps: int) -> bool:
    """Whether the graph of so many steps is likely to take no more than `MEMORY`."""
    rows = sum(spec.rows for spec in rule.state_spec.values() if spec.per == "coordinate")
    numbers = steps * carry.theta.numel() * COPIES * max(rows, 1)
    return numbers * carry.theta.element_size() <= MEMORY


class Tape:
    """The rule on blocks of coordinates, recorded.

    Args:
        rule: the rule.
        weights: its meta-parameters, the same for all runs.
        layout: of the coordinates.
        carry: where the window starts.
        total_steps: the horizon as the rule is told it.
    """

    def __init__(
        self,
        rule: UpdateRule,
        weights: Weights,
        layout: Layout,
        carry: Carry,
        total_steps: int | None = None,
    ) -> None:
        self._rule, self._total_steps = rule, total_steps
        self._leaves = {key: value.detach().requires_grad_() for key, value in weights.items()}
        self._shape = carry.theta.shape
        self._layout = layout
        if rule.coordinatewise:
            self._layout = Layout(rule, {"all": carry.theta.new_zeros(1)}, 0)  # of any length
        states = {key: self._state_blocks(value) for key, value in carry.state.items()}
        count = len(self._blocks(carry.theta))
        self._states: list[State] = [{k: v[i] for k, v in states.items()} for i in range(count)]
        self._steps: list[list[Tensor]] = [[] for _ in range(count)]

    def _blocks(self, joined: Tensor) -> tuple[Tensor, ...]:
        """`(*lead, N)` -> blocks `(n,)`; all of it where tensors matter."""
        return joined.reshape(-1).split(BLOCK) if self._rule.coordinatewise else (joined,)

    def _state_blocks(self, entry: Tensor) -> tuple[Tensor, ...]:
        if not self._rule.coordinatewise:
            return (entry,)
        return entry.movedim(-2, 0).flatten(1).split(BLOCK, dim=-1)

    def step(self, carry: Carry) -> Tensor:
        """The rule's step from here, `(*lead, N)`, without its graph, which stays on the tape."""
        clock = make_clock(carry.step + 1, self._total_steps, self._layout, carry.loss)
        grads, params = self._blocks(carry.grad), self._blocks(carry.theta)
        for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
            coords = Coordinates(grad, param)
            with torch.enable_grad():
                step, self._states[i] = apply_rule(
                    self._rule, self._leaves, self._layout, coords, self._states[i], clock
                )
            self._steps[i].append(step)
        return torch.cat([steps[-1].detach() for steps in self._steps], -1).view(self._shape)

    def state(self) -> State:
        """The rule's state after the last step, as a carry holds it."""
        if not self._rule.coordinatewise:
            return {key: value.detach() for key, value in self._states[0].items()}
        joined = {
            key: torch.cat([state[key].detach() for state in self._states], dim=-1)
            for key in self._states[0]
        }
        return {
            key: value.view(-1, *self._shape).movedim(0, -2).contiguous()
            for key, value in joined.items()
        }

    def gradient(self, cotangents: Tensor) -> Weights:
        """Gradient of `sum_t <cotangent_t, step_t>`, `(T, *lead, N)`; frees the graph."""
        wanted = [self._blocks(cotangent) for cotangent in cotangents]
        for i, steps in enumerate(self._steps):
            needed = [(s, w[i]) for s, w in zip(steps, wanted, strict=True) if s.requires_grad]
            torch.autograd.backward([s for s, _ in needed], [w for _, w in needed])
            self._steps[i], self._states[i] = [], {}
        return {
            key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for key, leaf in self._leaves.items()
        }
