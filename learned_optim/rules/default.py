"""The practical rule: a coordinatewise LSTM under a recurrent controller of each tensor.

Layers of the step, each a bounded correction of the one before:

1. the hand rule (see `hand`): the direction of Adam, of gradients that are clipped (see
   `clipping`), its length a fraction of the tensor's root mean square, on a fixed schedule,
   annealed where the horizon is known, and at the tensor's own pace (see `feedback`);
2. per coordinate, an LSTM of a few units, its state in the optimizer state: it bends the direction;
3. the matrix stage: the gradient of a small matrix is seen in its eigenbasis, as SOAP sees it
   (`bases`), and all of this happens in there; the direction of a larger one, or of one that is
   long and narrow, is mixed with its orthogonalisation by Newton-Schulz iterations, as Muon does
   with the momentum;
4. per tensor, an LSTM on averages over the coordinates and the clock: it sets the length of the
   step and the mixture, and talks to the coordinates;
5. last of all, part of the step is taken later, and part of what the steps before it left (see
   `deferral`).

The heads of both LSTMs start at zero: the rule drawn is the hand rule, and meta-training can only
add to it. Whatever the LSTMs say, no coordinate's step exceeds `LARGEST` times the hand rule's
length at the fastest pace (the hand rule itself: `CLIP` times) before the matrix stage, which
multiplies the root mean square by at most 1.2 times `gain`, a constant. What is taken in the end
is no longer than the longest of these steps so far.

What is where: `hand` has the constants and the schedule, `feedback` the pace, `controller` what the
LSTM of a tensor sees, `ranges` what float32 can square, `clipping` and `deferral` what their names
say. The class here has three headings: its state and its weights; the three stages, in their order;
whole matrices.

Nothing depends on the scale of the loss, while the root mean square of a tensor's gradient is
between 1e-12 and 1e13 in float32; outside that range, steps are finite and bounded but no longer
the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim import bases
from learned_optim.cells import CELLS, affine
from learned_optim.matrices import as_matrix, straighten
from learned_optim.rules.base import Clock, Coordinates, State, StateSpec, UpdateRule, Weights
from learned_optim.rules.clipping import clipping
from learned_optim.rules.controller import TELLS, memories, tells_of
from learned_optim.rules.feedback import Feedback, feedback
from learned_optim.rules.hand import (
    constant,
    deferred,
    floor,
    hand_length,
    hand_schedule,
    hand_shapes,
    hand_weights,
    waiting,
)
from learned_optim.rules.ranges import bounded, tiny

# Of products, over the coordinates; o is what is owed.
SUMS: tuple[str, ...] = ("g2", "v", "m2", "gm", "theta2", "go", "o2")
FACTS: tuple[str, ...] = ("is_matrix", "fan_in", "fan_out", "count", "has_basis")
SIGNALS: tuple[str, ...] = (
    "beta1", "beta2",
    "g_scale", "m_scale", "v_scale",  # factors: relative to the tensor's root second moment
    "theta_scale",
    "length", "blend", "gain",
    "say0", "say1",
    "clip",  # a factor: of the gradient, in the momentum
    "share", "due",  # of `deferral`
)  # fmt: skip
OWED = 2  # row of the moments: what is owed of the steps so far, see `deferral`
ADVICE = 5  # what it says: length, blend, aim of the feedback, two numbers for the coordinates
INPUTS = 6  # what a coordinate sees: four numbers of its own, two from the controller
BENDS = 3  # what it says: turn, add, free
TURN, ADD, FREE = 0.9, 0.5, 0.2  # bounds of those
CLIP = 4.0  # of the direction of Adam
LOUDEST = 2.0  # the controller multiplies the length by at most e^2
AIM = 0.2  # and moves the feedback's aim by at most this
LARGEST = math.exp(LOUDEST) * (CLIP * (1 + TURN + ADD) + FREE)
DEAD = 1e-12  # second moments below this fraction of the tensor's mean count as it
# In a basis it is this squared times as much: along vectors without a gradient rounding leaves one.
SEEN_DEAD = 30.0


@dataclass(frozen=True)
class Default(UpdateRule):
    """See the module.

    Args:
        hidden: units of each coordinate's LSTM, 0 to 64; 0 leaves that level out.
        controller: units of each tensor's LSTM, 0 to 128; 0 leaves that level out.
        matrix: whether matrices pass the matrix stage.
        basis: whether it may be the one with eigenbases.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "default"
    summary_size: ClassVar[int] = len(SUMS)
    turning: ClassVar[tuple[tuple[str, int], ...]] = (("moments", 0),)
    owing: ClassVar[tuple[str, int] | None] = ("moments", OWED)

    hidden: int = 4
    controller: int = 12
    matrix: bool = True
    basis: bool = True

    def __post_init__(self) -> None:
        for field, high in (("hidden", 64), ("controller", 128)):
            if not 0 <= getattr(self, field) <= high:
                raise ValueError(f"{field} must be in [0, {high}] but is {getattr(self, field)}")

    # -- its state and its weights -----------------------------------------------------------------

    @property
    def state_spec(self) -> Mapping[str, StateSpec]:
        """`moments` m, v and owed, and `cell` of the coordinates; the others of the tensor.

        What is owed is part of the steps so far, see `deferral`.
        `gauge` is the tensor's scale at its first step, against which the controller sees it grow,
        and its `Feedback`.
        Halves are enough for the cell: its h is below 1, and its c, which moves by at most 1 a
        step, cannot leave their range: from 2048 on, adding 1 rounds back.
        """
        spec = {"moments": StateSpec(3), "gauge": StateSpec(6, "tensor")}
        if self.hidden:
            spec["cell"] = StateSpec(2 * self.hidden, dtype=torch.float16)
        if self.controller:
            spec["controller"] = StateSpec(2 * self.controller, "tensor")
        return spec

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """The hand rule's constants, then each LSTM with its head."""
        shapes = hand_shapes()
        for level, inputs, hidden, outputs in self._levels():
            cell = CELLS["lstm"].weight_shapes(inputs, hidden)
            shapes |= {f"{level}.{key}": shape for key, shape in cell.items()}
            shapes |= {f"{level}.head.w": (outputs, hidden), f"{level}.head.b": (outputs,)}
        return shapes

    def share(self, weights: Weights, total_steps: int | None) -> Tensor:
        """A constant of the hand rule, but in short runs."""
        like = constant(weights, "logit_share")
        total = None if total_steps is None else torch.full_like(like, total_steps)
        return waiting(total, weights).squeeze(-1)

    def init_weights(self, generator: torch.Generator) -> Weights:
        """The hand rule: heads zero, LSTMs as torch.nn.LSTM's but for the controller's memory."""
        weights = hand_weights()
        for level, inputs, hidden, outputs in self._levels():
            cell = CELLS["lstm"].init_weights(inputs, hidden, generator)
            if level == "tensor":
                cell["b"][: 2 * hidden] += memories(hidden)
            weights |= {f"{level}.{key}": value for key, value in cell.items()}
            weights[f"{level}.head.w"] = cell["b"].new_zeros(outputs, hidden)
            weights[f"{level}.head.b"] = cell["b"].new_zeros(outputs)
        return weights

    def _levels(self) -> list[tuple[str, int, int, int]]:
        """Name, inputs, units and outputs of each LSTM."""
        levels = [
            ("tensor", TELLS, self.controller, ADVICE),
            ("coordinate", INPUTS, self.hidden, BENDS),
        ]
        return [level for level in levels if level[2]]

    def lean(self, weights: Weights) -> tuple[UpdateRule, Weights]:
        """Without the levels whose heads are zero."""
        fields = {"tensor": "controller", "coordinate": "hidden"}
        idle = {
            level
            for level in fields
            if not any(weights[key].any() for key in weights if key.startswith(f"{level}.head."))
        }
        kept = {key: w for key, w in weights.items() if key.partition(".")[0] not in idle}
        return replace(self, **{fields[level]: 0 for level in idle}), kept

    # -- the three stages --------------------------------------------------------------------------

    def describe(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        """`FACTS`; a vector has fan_in 1."""
        rows, columns = as_matrix(shape) if len(shape) > 1 else (math.prod(shape), 1)
        rows, columns = max(rows, 1), max(columns, 1)
        sizes = float(columns), float(rows), float(rows * columns)
        return float(len(shape) > 1), *sizes, float(self.has_basis(shape))

    def summarize(self, coords: Coordinates, state: State) -> Tensor:
        """`SUMS` over the coordinates."""
        m, v, owed = state["moments"].unbind(-2)
        g, owed = bounded(coords.grad), bounded(owed)
        # What is owed is in no basis.
        plain = g if coords.plain is None else bounded(coords.plain)
        # A coordinate that is no number must not be the measure of all others.
        theta = bounded(coords.param.nan_to_num(0.0, 0.0, 0.0))
        dot = torch.linalg.vecdot
        squares = dot(g, g), v.sum(-1), dot(m, m), dot(g, m), dot(theta, theta)
        return torch.stack((*squares, dot(plain, owed), dot(owed, owed)), dim=-1)

    def control(
        self, sums: Tensor, facts: Tensor, state: State, clock: Clock, weights: Weights
    ) -> tuple[Tensor, State]:
        """The schedule, the feedback, the controller: what is the same within a tensor."""
        known = dict(zip(FACTS, facts.unbind(-2), strict=True))
        means = dict(zip(SUMS, (sums / known["count"]).unbind(-2), strict=True))
        total = None if clock.total_steps is None else clock.total_steps.to(sums.dtype)
        clock = Clock(clock.step.to(sums.dtype), total)
        beta1, beta2 = (constant(weights, f"logit_beta{k}").sigmoid() for k in (1, 2))
        # The bound matters to no useful beta; it keeps those that round to 1 finite.
        correct1, correct2 = (1 / (1 - b**clock.step).clamp_min(1e-6) for b in (beta1, beta2))
        mean_v = (beta2 * means["v"] + (1 - beta2) * means["g2"]) * correct2
        rms = (means["theta2"] + tiny(sums)).sqrt()
        scale = torch.maximum(rms, floor(known, weights))
        origin, *remembered = state["gauge"].unbind(-2)
        before = Feedback(*remembered)
        origin = torch.where(clock.step == 1, scale, origin)
        new_state: dict[str, Tensor] = {}
        advice = sums.new_zeros(ADVICE, 1)
        if self.controller:
            growth = scale / origin.clamp_min(tiny(sums))
            tells = tells_of(means, mean_v, growth, before.pace, known, clock)
            cell = _level(weights, "tensor")
            h, new_state["controller"] = CELLS["lstm"].function(tells, state["controller"], cell)
            advice = affine(weights["tensor.head.w"], h, weights["tensor.head.b"])
        louder, more_blend, more_aim, say0, say1 = advice.unbind(-2)
        more_aim = AIM * more_aim.tanh()
        heard = feedback(before, means, mean_v, beta2, more_aim, scale, known, clock, weights)
        new_state["gauge"] = torch.stack(torch.broadcast_tensors(origin, *heard), dim=-2)
        length = hand_length(known, hand_schedule(clock, weights), weights) * scale
        # One over a root, and that squared, where one over mean_v or its power -1.5 in the
        # derivative would overflow.
        per_root = 1 / mean_v.clamp_min(tiny(sums)).sqrt()
        per_root = per_root * (1 - known["has_basis"] * (1 - 1 / SEEN_DEAD))
        signals = (
            beta1,
            beta2,
            per_root,
            correct1 * per_root,
            correct2 * per_root * per_root,
            (1 - known["has_basis"]) / rms,  # there, what a parameter has in its place says nothing
            length * (heard.pace + LOUDEST * louder.tanh()).exp(),
            torch.sigmoid(constant(weights, "blend") + more_blend),
            constant(weights, "log_gain").exp(),
            say0.tanh(),
            say1.tanh(),
            clipping(means, beta2, clock.step, weights),
            *deferred(clock, weights),
        )
        return torch.stack(torch.broadcast_tensors(*signals), dim=-2), new_state

    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        """The step before the matrix stage: minus length times the bent direction of Adam."""
        s = dict(zip(SIGNALS, signals.unbind(-2), strict=True))
        g = bounded(coords.grad)
        m, v, owed = state["moments"].unbind(-2)
        m = torch.lerp(m, s["clip"] * g, 1 - s["beta1"])
        v = torch.lerp(v, g * g, 1 - s["beta2"])
        relative_v = v * s["v_scale"] + DEAD
        per_root = relative_v.rsqrt()
        direction = (m * s["m_scale"] * per_root).clamp(-CLIP, CLIP)
        new_state = {"moments": torch.stack((m, v, owed), dim=-2)}
        if self.hidden:
            fresh = (g * s["g_scale"] * per_root).clamp(-CLIP, CLIP)
            theta = (coords.param * s["theta_scale"]).clamp(-CLIP, CLIP)
            # Seen from the side that the direction points to: with the sign of a coordinate flips
            # its step and nothing else. Otherwise the answer to no gradient at all would push all
            # coordinates the same way, and what the LSTM adds would drift with every step.
            side = direction.sign()
            fresh, direction, theta = fresh * side, direction * side, theta * side
            inputs = (fresh, direction, relative_v.log() / 8, theta, s["say0"], s["say1"])
            x = torch.stack(torch.broadcast_tensors(*inputs), dim=-2)
            cell = _level(weights, "coordinate")
            h, new_state["cell"] = CELLS["lstm"].function(x, state["cell"], cell)
            bends = affine(weights["coordinate.head.w"], h, weights["coordinate.head.b"])
            turn, add, free = bends.tanh().unbind(-2)
            direction = side * (direction * (1 + TURN * turn) + ADD * add * fresh + FREE * free)
        return -s["length"] * direction, new_state

    # -- whole matrices ----------------------------------------------------------------------------

    def has_basis(self, shape: tuple[int, ...]) -> bool:
        """Matrices that are not too uneven, see `bases.pays`."""
        return self.basis and self._is_matrix(shape) and bases.pays(*as_matrix(shape))

    def finishes(self, shape: tuple[int, ...]) -> bool:
        """Matrices without bases."""
        return self._is_matrix(shape) and not self.has_basis(shape)

    def _is_matrix(self, shape: tuple[int, ...]) -> bool:
        """For the matrix stage; the orthogonalisation of a single row or column normalises it."""
        return self.matrix and len(shape) > 1 and min(as_matrix(shape)) > 1

    def finish(self, step: Tensor, signals: Tensor) -> Tensor:
        """Mix in the orthogonalised step, `gain` times as long as the step itself.

        Muon's steps have one length whatever the gradients say; Adam's shrink as gradients stop to
        agree, which anneals a training whose end nobody knows. So the direction is Muon's and the
        length Adam's ("grafting": Agarwal et al., "Disentangling adaptive gradient methods from
        learning rates", 2020).
        """
        s = dict(zip(SIGNALS, signals[..., None, None].unbind(-3), strict=True))
        straight, rms = straighten(step)
        # In units of the length: the square of the step itself may leave the range of its dtype.
        rms = ((rms / s["length"].clamp_min(tiny(step))).square() + DEAD).sqrt()
        size = s["gain"] * s["length"] * rms * math.sqrt(max(step.shape[-2:]))
        return torch.lerp(step, size * straight, s["blend"])


def _level(weights: Weights, level: str) -> dict[str, Tensor]:
    """The weights of one of the two LSTMs."""
    return {key: weights[f"{level}.{key}"] for key in ("w_ih", "w_hh", "b")}
