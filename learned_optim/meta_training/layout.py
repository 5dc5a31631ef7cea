"""All parameters of an optimizee as one vector of coordinates, and the way back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_optim import bases
from learned_optim.bases import Basis, Turn
from learned_optim.matrices import as_matrix
from learned_optim.rules import Clock, Coordinates, State, UpdateRule
from learned_optim.rules.deferral import defer
from learned_optim.rules.ranges import bounded
from learned_optim.tasks.base import Params


class Layout:
    """Where each parameter's coordinates lie in the flat vector of all of them.

    The rule moves all parameters of an optimizee in one call: most optimizees here are small, and
    the overhead of a call for each tensor would dominate. What a rule does once for each tensor
    (sums, control) is done for the segments of the vector.
    """

    def __init__(self, rule: UpdateRule, params: Params, lead: int) -> None:
        self.names = tuple(params)
        self.shapes = tuple(tuple(params[name].shape[lead:]) for name in self.names)
        self.sizes = tuple(math.prod(shape) for shape in self.shapes)
        example = params[self.names[0]]
        self.facts = example.new_tensor([rule.describe(shape) for shape in self.shapes]).mT
        self._segment = torch.repeat_interleave(
            torch.arange(len(self.sizes)), torch.tensor(self.sizes)
        ).to(example.device)

    @property
    def coordinates(self) -> int:
        """N."""
        return sum(self.sizes)

    def join(self, params: Params) -> Tensor:
        """`(*lead, *shape)` each -> `(*lead, N)`."""
        flat = [
            value.flatten(value.dim() - len(shape)) if shape else value.unsqueeze(-1)
            for value, shape in (
                (params[n], s) for n, s in zip(self.names, self.shapes, strict=True)
            )
        ]
        return torch.cat(flat, dim=-1)

    def split(self, joined: Tensor) -> Params:
        """Inverse of `join`; views."""
        return {
            name: part.reshape(*part.shape[:-1], *shape)
            for name, shape, part in zip(
                self.names, self.shapes, joined.split(self.sizes, dim=-1), strict=True
            )
        }

    def summarize(self, rule: UpdateRule, coords: Coordinates, state: State) -> Tensor:
        """`rule.summarize` of each tensor, `(*lead, K, T)`."""
        if not rule.summary_size:
            return coords.grad.new_zeros((*coords.grad.shape[:-1], 0, len(self.sizes)))
        plain = coords.grad if coords.plain is None else coords.plain
        columns = [x.split(self.sizes, dim=-1) for x in (coords.grad, coords.param, plain)]
        states = {key: value.split(self.sizes, dim=-1) for key, value in state.items()}
        parts = [
            rule.summarize(Coordinates(g, p, plain=own), {k: v[i] for k, v in states.items()})
            for i, (g, p, own) in enumerate(zip(*columns, strict=True))
        ]
        return torch.stack(parts, dim=-1)

    def spread(self, signals: Tensor) -> Tensor:
        """A column a tensor -> one that broadcasts over its coordinates, `(*lead, M, N or 1)`."""
        if not signals.shape[-2] or signals.shape[-1] == 1:
            return signals[..., :1]
        return signals.index_select(-1, self._segment)

    def initial_bases(self, rule: UpdateRule, like: Tensor) -> State:
        """Entries of the state for the matrices that have bases, `(*lead, ...)` each.

        Named by the entry and the number of the tensor.
        """
        state = {}
        for index, sides in self._with_basis(rule):
            basis = bases.initial(*sides, like=like)
            for key, value in basis._asdict().items():
                state[f"{key}.{index}"] = value.expand(*like.shape[:-1], *value.shape).clone()
        return state

    def _with_basis(self, rule: UpdateRule) -> list[tuple[int, tuple[int, int]]]:
        """Numbers and sides of the matrices that have bases."""
        shapes = enumerate(self.shapes)
        return [(i, as_matrix(shape)) for i, shape in shapes if rule.has_basis(shape)]

    def see(
        self, rule: UpdateRule, grad: Tensor, state: State, clock: Clock
    ) -> tuple[Tensor, State, State]:
        """Gradients `(*lead, N)` as the rule sees them, the rest of the state, and the bases.

        Where a basis turns, what the state has summed up in it turns along. No derivative goes
        through the turning itself.
        """
        members = self._with_basis(rule)
        if not members:
            return grad, state, {}
        step = int(clock.step.flatten()[0])
        keys = {f"{key}.{index}" for key in Basis._fields for index, _ in members}
        rest = {key: value for key, value in state.items() if key not in keys}
        found: State = {}
        parts = list(grad.split(self.sizes, dim=-1))
        turned = {key: list(rest[key].split(self.sizes, dim=-1)) for key, _ in rule.turning}
        moved = False
        for index, sides in members:
            basis = basis_of(state, index)
            seen = bases.see(bounded(parts[index].unflatten(-1, sides)), basis)
            if bases.is_due(step):
                basis, turn = bases.follow(seen.detach(), basis, firm=bases.is_firm(step))
                seen, moved = turn.apply(seen), True
                for key, row in rule.turning:
                    turned[key][index] = _turn_row(turned[key][index], row, sides, turn)
            parts[index] = seen.flatten(-2)
            found |= {f"{key}.{index}": value for key, value in basis._asdict().items()}
        if moved:
            rest |= {key: torch.cat(entries, dim=-1) for key, entries in turned.items()}
        return torch.cat(parts, dim=-1), rest, found

    def settle(
        self, rule: UpdateRule, step: Tensor, signals: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """What comes behind `update`: the steps of matrices completed, part of all steps deferred.

        Args:
            rule: the rule.
            step: `(*lead, N)`.
            signals: `(*lead, M, T)`.
            state: all of it after `update`, with the bases from `see`.
        """
        step = self._complete(rule, step, signals, state)
        if rule.owing is None:
            return step, state
        key, row = rule.owing
        rows = list(state[key].unbind(-2))
        step, rows[row] = defer(step, rows[row], self.spread(signals[..., -2:, :]))
        return step, state | {key: torch.stack(rows, dim=-2)}

    def _complete(self, rule: UpdateRule, step: Tensor, signals: Tensor, found: State) -> Tensor:
        """`rule.complete` of each tensor that asks for it; matrices of one shape in one call."""
        alike: dict[tuple[bool, tuple[int, int]], list[int]] = {}
        for index, shape in enumerate(self.shapes):
            if rule.waits(shape):
                alike.setdefault((rule.has_basis(shape), as_matrix(shape)), []).append(index)
        if not alike:
            return step
        parts = list(step.split(self.sizes, dim=-1))
        for (seen, sides), group in alike.items():
            matrices = torch.stack([parts[i].unflatten(-1, sides) for i in group], dim=-3)
            basis = None
            if seen:
                each = [basis_of(found, index) for index in group]
                entries = zip(*each, strict=True)
                basis = Basis(*(torch.stack(entry, dim=-3) for entry in entries))
            whole = rule.complete(matrices, signals[..., group].mT, basis).flatten(-2)
            for index, part in zip(group, whole.unbind(-2), strict=True):
                parts[index] = part
        return torch.cat(parts, dim=-1)


def basis_of(state: State, index: int) -> Basis:
    """The basis of a tensor, by its number, cut from any graph."""
    return Basis(*(state[f"{key}.{index}"].detach() for key in Basis._fields))


def _turn_row(entry: Tensor, row: int, sides: tuple[int, int], turn: Turn) -> Tensor:
    """One row of `(*lead, rows, N)`, turned along with the basis."""
    rows = list(entry.unbind(-2))
    rows[row] = turn.apply(rows[row].unflatten(-1, sides)).flatten(-2)
    return torch.stack(rows, dim=-2)
