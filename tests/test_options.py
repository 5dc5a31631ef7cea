"""Options at the ends of their ranges, and of NumPy's types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_training import ADAM, parameters, set_grads, through_file

from learned_optim import LearnedOptimizer
from learned_optim.options import check_options

FLOAT32 = torch.finfo(torch.float32).max
HUGE = pytest.param(10**400, id="huge")
# Options that pass.
FINE: dict[str, Any] = {
    "lr": 1.0,
    "weight_decay": 0.0,
    "total_steps": None,
    "maximize": False,
    "fused": None,
}


@pytest.mark.parametrize(
    "options",
    [
        {"lr": FLOAT32},
        {"lr": torch.tensor(1.0, dtype=torch.float16)},
        {"lr": np.float32(1)},
        {"weight_decay": FLOAT32},
        {"total_steps": 2**63 - 1},
        {"total_steps": np.int64(2**63 - 1)},
        {"total_steps": 100.0},
    ],
)
def test_the_ends_of_the_ranges_are_in(options: dict[str, Any]):
    check_options(FINE | options)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [1e39, HUGE, torch.tensor(1e300, dtype=torch.float64)])
def test_a_rate_that_float32_cannot_hold_is_refused(key: str, value: Any):
    with pytest.raises(ValueError, match=rf"^{key} must be at most 3\.4e\+38, .* but is "):
        check_options(FINE | {key: value})


@pytest.mark.parametrize("value", [1j, torch.tensor(1j)])
def test_a_complex_rate_is_refused(value: Any):
    with pytest.raises(ValueError, match="lr must be >= 0 and finite"):
        check_options(FINE | {"lr": value})


@pytest.mark.parametrize("value", [2**63, 2.0**63, 10**30, HUGE, np.uint64(2**63)])
def test_a_horizon_that_an_integer_of_torch_cannot_hold_is_refused(value: Any):
    with pytest.raises(ValueError, match=r"total_steps must be .* and < 2\*\*63 but is "):
        check_options(FINE | {"total_steps": value})


@pytest.mark.parametrize("fused", [None, False])
def test_the_longest_horizon_steps(fused: bool | None):
    (param,) = parameters(((3, 2),))
    optimizer = LearnedOptimizer([param], total_steps=2**63 - 1, fused=fused)
    set_grads([param], seed=0)
    optimizer.step()
    assert param.isfinite().all()


@pytest.mark.parametrize("place", ["constructor", "group"])
def test_a_checkpoint_of_a_numpy_horizon_loads_as_plain_values(place: str):
    horizon: dict[str, Any] = {"total_steps": np.int64(100)}
    groups: list[dict[str, Any]] = [{"params": parameters(((3, 2),))}]
    if place == "constructor":
        optimizer = LearnedOptimizer(groups, ADAM, **horizon)
    else:
        optimizer = LearnedOptimizer([groups[0] | horizon], ADAM)
    (group,) = through_file(optimizer.state_dict())["param_groups"]
    assert group["total_steps"] == 100
