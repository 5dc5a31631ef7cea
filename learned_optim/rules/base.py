"""The contract of an update rule: a frozen config plus pure functions of tensors.

Two callers share these functions: the optimizer (no grad, over blocks of coordinates, or fused
by a backend) and the unroll of meta-training (out of place, differentiable, batched). So a rule
holds no tensor; its meta-parameters, its state and everything else come as arguments.

One step of one parameter tensor with N coordinates runs in three stages:

1. `summarize`: sums over the coordinates, `(..., K)`. Only sums, so that blocks and shards add up.
2. `control`: T tensors at once, from those sums and the clock: `signals` for the coordinates, and
   the tensors' own new state. Feature-major like the coordinates, with tensors in their place.
3. `update`: single coordinates only, so it may be cut into blocks, fused and sharded at will.

A rule may ask for whole matrices before and after that: `has_basis` says which gradients it sees
in a basis of their own (`bases`), with everything above in there too; `finish` changes the steps of
others. And it may ask that part of every step be taken later (`owing`): callers then apply
`deferral.defer` behind all stages, by the last two signals; `update` hands that row on as it is.

Every function takes optional leading dimensions `...` (tasks, perturbations), on weights too.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from learned_optim import bases
from learned_optim.bases import Basis
from learned_optim.matrices import as_matrix

Weights = dict[str, Tensor]
State = dict[str, Tensor]


class StateSpec(NamedTuple):
    """One named entry of a rule's state.

    Attributes:
        rows: numbers held for each coordinate, or for each tensor.
        per: "coordinate": shape `(rows, *param.shape)`; "tensor": shape `(rows,)`.
        dtype: storage dtype; computation is always in the step's own dtype (float32, or float64
            for float64 parameters, whose state is stored in float64 too).
    """

    rows: int
    per: Literal["coordinate", "tensor"] = "coordinate"
    dtype: torch.dtype = torch.float32


class Coordinates(NamedTuple):
    """What the coordinates see, `(..., N)` each.

    Attributes:
        grad: the gradient, seen in its basis where the rule asks for one (`has_basis`).
        param: the parameter.
        widths: for meta-training alone, see `features.log_sign`; it changes no value.
        plain: for `summarize` alone, the gradient in no basis; None: `grad` is.
    """

    grad: Tensor
    param: Tensor
    widths: Tensor | None = None
    plain: Tensor | None = None


class Clock(NamedTuple):
    """Time, as tensors so that nothing recompiles from step to step.

    Attributes:
        step: `(T,)`, the number of this step of each tensor, 1 on the first.
        total_steps: `(T,)`, or None where the user did not tell the horizon.
    """

    step: Tensor
    total_steps: Tensor | None = None


def compute_dtype(param_dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 parameters, float32 for everything else."""
    return torch.float64 if param_dtype == torch.float64 else torch.float32


def later(default: object) -> Any:  # noqa: ANN401 - a field is typed by its annotation
    """A config field that older files lack, where it means `default` for ever."""
    return dataclasses.field(default=default, metadata={"later": True})


def told_fields(value: Any) -> list[str]:  # noqa: ANN401 - of any dataclass
    """Names of the fields that a dataclass is told apart by: of `later` ones those that differ.

    So what was saved before such a field was there still is of the same rule.
    """
    return [
        field.name
        for field in dataclasses.fields(value)
        if not field.metadata.get("later") or getattr(value, field.name) != field.default
    ]


def fixed_weights(values: Mapping[str, float | tuple[float, ...]]) -> Weights:
    """Meta-parameters that begin where they are said to: float32, whatever torch's defaults are."""
    return {
        key: torch.tensor(value, dtype=torch.float32, device="cpu") for key, value in values.items()
    }


@dataclasses.dataclass(frozen=True)
class UpdateRule(ABC):
    """Base of all rules. A subclass is a frozen dataclass whose fields are its config.

    Class attributes:
        name: the key in `RULES` and in weight files.
        summary_size: K, the number of sums of `summarize`; 0 skips that pass over the memory.
        turning: (entry, row) of the coordinates' state that sum up gradients: a basis turns them.
        owing: (entry, row) of the coordinates' state that is owed of steps; None: nothing is.
    """

    name: ClassVar[str]
    summary_size: ClassVar[int] = 0
    turning: ClassVar[tuple[tuple[str, int], ...]] = ()
    owing: ClassVar[tuple[str, int] | None] = None

    @property
    @abstractmethod
    def state_spec(self) -> Mapping[str, StateSpec]:
        """Name -> layout of each entry of the state."""

    @property
    def decay_scale(self) -> float:
        """Fraction that `weight_decay=1` takes off a parameter in a step at `lr=1`.

        Learned steps have no learning rate, so decoupled decay is measured against the 1e-3 at
        which AdamW's usual values of `weight_decay` were chosen.
        """
        return 1e-3

    @abstractmethod
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the meta-parameters."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> Weights:
        """Draw untrained meta-parameters (float32, CPU)."""

    def mirrored(self, weights: Weights) -> Weights:
        """Weights that answer to the opposite gradients with the opposite steps of these.

        Linear and its own inverse, so that the mean of both is odd in the gradient, and the same
        can be done to meta-gradients and perturbations, with any leading dimensions. By default the
        weights themselves, for rules that are odd in any case.
        """
        return weights

    def lean(self, weights: Weights) -> tuple[UpdateRule, Weights]:
        """The same steps without the parts that say nothing under these weights.

        A network whose head is zero would cost time and state for no effect. By default the rule
        itself; meta-training, for which such a part is a beginning, never asks.
        """
        return self, weights

    def share(self, weights: Weights, total_steps: int | None) -> Tensor:
        """The share of a step that is taken later, `(...)`; of a rule with `owing`."""
        raise NotImplementedError(f"{self.name} defers nothing")

    def init_state(self, param: Tensor, shape: tuple[int, ...] | None = None) -> State:
        """Zero state for `param` of any shape, on its device, in the storage dtypes of the spec.

        And its basis, where it has one; `shape` is of the whole tensor, where `param` is a part.
        """
        state: State = {}
        for key, spec in self.state_spec.items():
            size = (spec.rows, *param.shape) if spec.per == "coordinate" else (spec.rows,)
            dtype = torch.float64 if param.dtype == torch.float64 else spec.dtype
            state[key] = torch.zeros(size, dtype=dtype, device=param.device)
        whole = tuple(param.shape) if shape is None else shape
        if self.has_basis(whole):
            like = torch.empty(0, dtype=compute_dtype(param.dtype.to_real()), device=param.device)
            state |= bases.initial(*as_matrix(whole), like=like)._asdict()
        return state

    def summarize(self, coords: Coordinates, state: State) -> Tensor:
        """Sums over the coordinates that `control` needs, `(..., K)`; none by default."""
        return coords.grad.new_zeros((*coords.grad.shape[:-1], 0))

    def describe(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        """What `control` needs to know of a tensor from its shape, D numbers; none by default."""
        return ()

    def control(
        self, sums: Tensor, facts: Tensor, state: State, clock: Clock, weights: Weights
    ) -> tuple[Tensor, State]:
        """Once for each of T tensors: `(signals, new per-tensor state)`.

        Args:
            sums: `(..., K, T)`, each of a whole tensor (all blocks, all shards).
            facts: `(D, T)`, what `describe` says of them.
            state: the per-tensor entries, `(..., rows, T)` each.
            clock: the time.
            weights: the meta-parameters.

        Returns:
            Signals `(..., M, T)`, of which `update` receives each coordinate's column, and the
            per-tensor entries of the state.
        """
        return sums.new_zeros((*sums.shape[:-2], 0, sums.shape[-1])), state

    @abstractmethod
    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        """The step of each coordinate.

        Args:
            coords: gradient and parameter, `(..., N)`.
            state: the per-coordinate entries, `(..., rows, N)` each, in the compute dtype.
            signals: `(..., M, 1)` or `(..., M, N)`.
            weights: the meta-parameters, in the compute dtype.

        Returns:
            The step `(..., N)`, to be added to the parameter (times the user's `lr`), and the
            per-coordinate entries of the state.
        """

    def has_basis(self, shape: tuple[int, ...]) -> bool:
        """Whether gradients of this shape are seen in a basis of their own; none by default.

        Then `summarize` and `update` have the gradient in there, beside the parameter as it is
        (and `summarize` the gradient as it is), and the step that they give is in there too.
        """
        return False

    def finishes(self, shape: tuple[int, ...]) -> bool:
        """Whether tensors of this shape (two or more dimensions) pass `finish`; none by default."""
        return False

    def finish(self, step: Tensor, signals: Tensor) -> Tensor:
        """A last stage that needs whole matrices, `(..., rows, columns)` -> the same.

        The one stage that can be neither blocked nor sharded: callers gather the step of the whole
        tensor, as a matrix of the first dimension against all others.

        Args:
            step: what `update` returned.
            signals: `(..., M)`, of this tensor.
        """
        return step

    def waits(self, shape: tuple[int, ...]) -> bool:
        """Whether steps of this shape must be whole before they are taken, for `complete`."""
        return self.has_basis(shape) or self.finishes(shape)

    def complete(self, step: Tensor, signals: Tensor, basis: Basis | None) -> Tensor:
        """What is left to do with the whole step of a matrix: out of its basis, or `finish`."""
        return self.finish(step, signals) if basis is None else bases.unsee(step, basis)

    def config(self) -> dict[str, object]:
        """The fields as plain values, as `config.json` holds them, see `told_fields`."""
        values = dataclasses.asdict(self)
        return {key: values[key] for key in told_fields(self)}

    @property
    def coordinatewise(self) -> bool:
        """Whether tensors do not matter: no sums, nothing kept for a tensor.

        `control` of such a rule may depend on the clock alone, so that its coordinates may be cut
        and joined without regard to tensors.
        """
        return self.summary_size == 0 and not self.keys_per("tensor")

    def keys_per(self, per: Literal["coordinate", "tensor"]) -> tuple[str, ...]:
        """Names of the state's entries of one kind, in the order of the spec."""
        return tuple(key for key, spec in self.state_spec.items() if spec.per == per)
