"""Small models, data and rules for the optimizer's tests; everything from explicit generators."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from learned_optim import LearnedOptimizer, LoadedRule
from learned_optim.rules import L2L, Adam, UpdateRule
from learned_optim.weights import in_memory

Batch = tuple[Tensor, Tensor]


def loaded(rule: UpdateRule, seed: int = 0, name: str = "test-rule") -> LoadedRule:
    """A rule with weights as they are drawn."""
    return in_memory(rule, rule.init_weights(torch.Generator().manual_seed(seed)), name=name)


def awake(rule: UpdateRule, name: str = "test-rule") -> LoadedRule:
    """The same, but no head is zero, so that steps leave out nothing of it."""
    drawn = loaded(rule, name=name).weights
    heads = {key: value + 0.01 if ".head." in key else value for key, value in drawn.items()}
    return in_memory(rule, heads, name=name)


ADAM = loaded(Adam(learning_rate=1e-2), name="adam")
# Untrained, so they do not descend, but they have all that a recurrent rule has. The first may run
# in a fused backend, the second has none and always takes the eager reference.
LSTM = loaded(L2L(layers=2, hidden=3), name="lstm")
GRU = loaded(L2L(cell="gru", layers=2, hidden=3), name="gru")


def randn(shape: Iterable[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers; the same for every dtype up to rounding."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(dtype)


def mlp(
    seed: int = 0, dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (6, 8, 4, 2)
) -> nn.Sequential:
    """A tanh network; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [layer, nn.Tanh()]
    return nn.Sequential(*modules[:-1]).to(dtype)


def data(
    count: int, seed: int = 1, dtype: torch.dtype = torch.float32, out: int = 2
) -> list[Batch]:
    """Batches of a teacher's inputs and outputs."""
    teacher = randn((6, out), seed)
    inputs = [randn((16, 6), 1000 * seed + k) for k in range(count)]
    return [(x.to(dtype), torch.tanh(x @ teacher).to(dtype)) for x in inputs]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]).float(), batch[1].float())


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def set_grads(params: Iterable[Tensor], seed: int) -> None:
    for index, param in enumerate(params):
        param.grad = randn(param.shape, 100 * seed + index, param.dtype)


def parameters(
    shapes: Iterable[tuple[int, ...]] = ((4, 3), (5,), ()),
    dtype: torch.dtype = torch.float32,
    seed: int = 7,
) -> list[nn.Parameter]:
    return [nn.Parameter(randn(shape, seed + i, dtype)) for i, shape in enumerate(shapes)]


def snapshot(params: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    params = params.parameters() if isinstance(params, nn.Module) else params
    return [param.detach().clone() for param in params]


def same(a: nn.Module | Iterable[Tensor], b: nn.Module | Iterable[Tensor]) -> bool:
    """Bitwise."""
    pairs = zip(snapshot(a), snapshot(b), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def assert_near(
    a: nn.Module | Iterable[Tensor], b: nn.Module | Iterable[Tensor], tol: float = 1e-4
) -> None:
    for x, y in zip(snapshot(a), snapshot(b), strict=True):
        torch.testing.assert_close(x, y, rtol=tol, atol=tol)


def through_file(content: Any) -> Any:
    """What a checkpoint is after torch.save and torch.load(weights_only=True)."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same_tree(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and same([a], [b])
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same_tree(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def frozen_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(optimizer.state_dict())


def make(params: Any, rule: LoadedRule | str = LSTM, **options: Any) -> LearnedOptimizer:
    return LearnedOptimizer(params, rule, **options)
