"""All parameters of an optimizee as one vector of coordinates, and the way back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_optim.matrices import as_matrix
from learned_optim.rules import Coordinates, State, UpdateRule
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
        grads, params = (x.split(self.sizes, dim=-1) for x in (coords.grad, coords.param))
        states = {key: value.split(self.sizes, dim=-1) for key, value in state.items()}
        parts = [
            rule.summarize(Coordinates(grads[i], params[i]), {k: v[i] for k, v in states.items()})
            for i in range(len(self.sizes))
        ]
        return torch.stack(parts, dim=-1)

    def spread(self, signals: Tensor) -> Tensor:
        """A column a tensor -> one that broadcasts over its coordinates, `(*lead, M, N or 1)`."""
        if not signals.shape[-2] or signals.shape[-1] == 1:
            return signals[..., :1]
        return signals.index_select(-1, self._segment)

    def finish(self, rule: UpdateRule, step: Tensor, signals: Tensor) -> Tensor:
        """`rule.finish` of each tensor that asks for it; matrices of one shape in one call."""
        alike: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(self.shapes):
            if rule.finishes(shape):
                alike.setdefault(as_matrix(shape), []).append(index)
        if not alike:
            return step
        parts = list(step.split(self.sizes, dim=-1))
        for shape, group in alike.items():
            matrices = torch.stack([parts[i].unflatten(-1, shape) for i in group], dim=-3)
            finished = rule.finish(matrices, signals[..., group].mT).flatten(-2)
            for index, part in zip(group, finished.unbind(-2), strict=True):
                parts[index] = part
        return torch.cat(parts, dim=-1)
