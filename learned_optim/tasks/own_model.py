"""A model of the user's own as a task family, so that a rule can be learned on it.

The function that makes it is the one that `learned-optim compare` takes, see `factory`. Each run is
built anew under a seed of its own, and each minibatch is what `loss` draws under a seed; so both
have to come from the random generators of Python, NumPy or torch and from nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from learned_optim.factory import (
    FactoryError,
    Problem,
    build,
    load_factory,
    seed_all,
    take_loss,
    users,
)
from learned_optim.tasks.base import Batch, Params, Split, Task, TaskFamily

BUILT = 64  # models that are kept when their run is over: validation asks for the same ones again
SEEDS = 2**31


class _Closed(nn.Module):
    """The loss as a module, so that the model's parameters can be given with the call."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.model, self.problem = problem.model, problem

    def forward(self) -> Tensor:
        """The loss of the minibatch that the seeds of the moment draw."""
        with users("loss()"):
            return self.problem.loss().reshape(())


@lru_cache(maxsize=BUILT)
def _built(model: str, seed: int) -> _Closed:
    problem = build(load_factory(model), seed)
    wrong = sorted({str(param.dtype) for param in problem.parameters} - {"torch.float32"})
    if wrong:
        raise FactoryError(f"{model}: parameters must be float32 but some are {', '.join(wrong)}")
    # Running statistics would be a memory that no seed resets.
    torch.func.replace_all_batch_norm_modules_(problem.model)
    return _Closed(problem)


@lru_cache
def _check(model: str) -> None:
    """Ask the loss of one model twice, and that of the same model built again.

    Raises:
        FactoryError: it is nothing that can be trained, or two losses under one seed differ.
    """
    closed, again = _built(model, 0), _built.__wrapped__(model, 0)
    first, *others = (_loss_under_seed(one.problem) for one in (closed, closed, again))
    for other in others:
        if other != first:
            raise FactoryError(
                f"loss() of {model} gives {first:.6g}, then {other:.6g} under one seed: data, start"
                " and minibatches must be drawn from the random generators of Python, NumPy or"
                " torch, as x[torch.randint(len(x), (32,))] is, and not come from an iterator or"
                " from np.random.default_rng(), and a call must not change the model"
            )


def _loss_under_seed(problem: Problem) -> float:
    seed_all(1)
    return float(take_loss(problem).detach())


@dataclass(frozen=True)
class OwnModelTask(Task):
    """What the function makes.

    Parameters are those of the model with `requires_grad`, under its names for them; constant
    `built` `()` and minibatch `drawn` `()` are seeds, int64.
    """

    model: str
    # However many runs there are, none may have its model built anew for each loss.
    in_use: dict[int, _Closed] = field(default_factory=dict, compare=False, repr=False)
    batched: ClassVar[bool] = False

    def _closed(self, seed: int) -> _Closed:
        if seed not in self.in_use:
            self.in_use[seed] = _built(self.model, seed)
        return self.in_use[seed]

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As the function makes it under a seed."""
        seed = _seed(generator)
        named = self._closed(int(seed)).model.named_parameters()
        params = {name: p.detach().clone() for name, p in named if p.requires_grad}
        return params, {"built": seed}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """A seed; there is no test split."""
        return {"drawn": _seed(generator)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """What `loss` of the user's says under the seed; all random generators are seeded."""
        closed = self._closed(int(batch["built"]))
        seed_all(int(batch["drawn"]))
        named = {f"model.{name}": value for name, value in params.items()}
        # The faster kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.functional_call(closed, named, ())


def _seed(generator: torch.Generator) -> Tensor:
    return torch.randint(SEEDS, (), generator=generator)


@dataclass(frozen=True)
class OwnModel(TaskFamily):
    """One model of the user's; starts and minibatches differ from run to run.

    Args:
        model: `module:function`, see `factory`; the current folder is searched first.

    Raises:
        ValueError: there is no such function, it returns something else than agreed, parameters are
            not float32, or the loss is not determined by the random generators.
    """

    name: ClassVar[str] = "own_model"

    model: str = ""

    def __post_init__(self) -> None:
        _check(self.model)

    def sample(self, generator: torch.Generator) -> OwnModelTask:
        """The structure is the model's."""
        return OwnModelTask(self.model)
