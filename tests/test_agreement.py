"""Meta-training's unroll and `LearnedOptimizer` are the same algorithm, to rounding."""

from __future__ import annotations

import pytest
import torch

from learned_optim import LearnedOptimizer
from learned_optim.hub import load_rule
from learned_optim.meta_training.unroll import Runs, advance, begin
from learned_optim.rules import RULES
from learned_optim.tasks.mnist_mlp import MnistMLP
from learned_optim.tasks.quadratic import Quadratic
from learned_optim.weights import LoadedRule, bundled_names, in_memory

DIGITS = MnistMLP(dataset="digits", batch_size=32, hidden=10)
FAMILIES = {"quadratic": Quadratic(), "digits": DIGITS}


def lively(name: str) -> LoadedRule:
    """A rule whose untrained weights move the parameters."""
    rule = RULES[name]()
    weights = rule.init_weights(torch.Generator().manual_seed(3))
    louder = {k: v * 30 if k.startswith("head") else v for k, v in weights.items()}
    return in_memory(rule, louder, name=name)


def unrolled(loaded: LoadedRule, family, steps: int, total_steps: int | None, dtype: torch.dtype):
    runs = Runs(family.sample(torch.Generator()), [11])
    runs.initial = {key: value.to(dtype) for key, value in runs.initial.items()}
    runs.constants = {key: value.to(dtype) for key, value in runs.constants.items()}
    weights = {key: value.to(dtype) for key, value in loaded.weights.items()}
    layout, carry = begin(loaded.rule, runs)
    curve = [carry.loss]
    with torch.no_grad():
        for _ in range(steps):
            carry = advance(loaded.rule, weights, runs, layout, carry, total_steps)
            curve.append(carry.loss)
    return torch.cat(curve), {key: value[0] for key, value in layout.split(carry.theta).items()}


def optimized(
    loaded: LoadedRule,
    family,
    steps: int,
    total_steps: int | None,
    dtype: torch.dtype,
    fused: bool | None,
):
    task, generator = family.sample(torch.Generator()), torch.Generator().manual_seed(11)
    start, constants = task.init(generator)
    constants = {key: value.to(dtype) for key, value in constants.items()}
    params = {key: torch.nn.Parameter(value.to(dtype)) for key, value in start.items()}
    optimizer = LearnedOptimizer(params.values(), rule=loaded, total_steps=total_steps, fused=fused)
    curve = []
    for step in range(steps + 1):
        loss = task.loss(params, constants | task.batch(generator))
        curve.append(loss.detach())
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.stack(curve), {key: value.detach() for key, value in params.items()}


# A trained rule may be chaotic: rounding doubles within a few steps. So the whole horizon is
# compared in float64, and float32, kernels included, over the steps in which it can not grow.
PRECISIONS = {torch.float64: (100, 1e-5), torch.float32: (8, 1e-5)}
# Eight gradients leave vectors of a basis undetermined, and rounding turns these.
LOOSE = {("default", torch.float32): 3e-5}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("total_steps", [None, 100])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*RULES, *bundled_names()])
def test_unroll_and_optimizer_give_the_same_trajectory(name, family, total_steps, fused, dtype):
    """Losses and parameters to 1e-5, relative."""
    loaded = load_rule(name) if name in bundled_names() else lively(name)
    steps, tolerance = PRECISIONS[dtype]
    tolerance = LOOSE.get((name, dtype), tolerance)
    arguments = (loaded, FAMILIES[family], steps, total_steps, dtype)
    expected, end = unrolled(*arguments)
    found, params = optimized(*arguments, fused)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-6)
    start, _ = FAMILIES[family].sample(torch.Generator()).init(torch.Generator().manual_seed(11))
    # The kernels' QR turns such vectors otherwise than torch's: what counts for them is that they
    # are as near to float64 as float32 is elsewhere.
    other = dict.fromkeys(end, 0.0)
    if name == "default" and dtype == torch.float32 and fused is None:
        exact = unrolled(*arguments[:-1], torch.float64)[1]
        other = {key: 3 * float((end[key] - exact[key]).norm()) for key in end}
        end = exact
    for key, value in end.items():
        moved = float((value - start[key]).norm())
        assert moved > 0
        allowed = tolerance * max(moved, float(value.norm())) + other[key]
        assert float((params[key] - value).norm()) <= allowed, key
