"""The kernel behind the matrix stage: `kernels.take_`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.rules.deferral import defer

SHARE, DUE = 0.5, 0.08

pytestmark = pytest.mark.usefixtures("built_kernels")


def case(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter, what is owed, a step."""
    generator = torch.Generator().manual_seed(count)
    param, owed, step = torch.randn(3, count, generator=generator).unbind()
    return param.to(dtype), owed.contiguous(), 0.1 * step


@pytest.mark.parametrize("count", [0, 1, 31, 64, 65, (1 << 16) + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_takes_what_deferral_says(level: str, count: int, dtype: torch.dtype):
    param, owed, step = case(count, dtype)
    terms = torch.tensor([[SHARE], [DUE]])
    taken, left = defer(step.double(), owed.double(), terms.double())
    expected = 0.99 * param.double() + 0.5 * taken
    kernels.take_(param, owed, step, lr=0.5, keep=0.99, share=SHARE, due=DUE)
    torch.testing.assert_close(owed, left.float(), rtol=1e-6, atol=1e-7)
    # Half a unit of the parameter's dtype, and the rounding of float32 before it.
    exact = torch.finfo(dtype).eps
    torch.testing.assert_close(param.double(), expected, rtol=exact, atol=1e-7)


def test_threads_change_nothing(level: str):
    found = []
    for threads in (1, 3):
        param, owed, step = case((1 << 20) + 17, torch.float32)
        kernels.take_(param, owed, step, threads=threads, share=SHARE, due=DUE)
        found.append((param, owed))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": torch.zeros(4)}, "step must have shape (5,) but has (4,)"),
        ({"owed": torch.zeros(5).double()}, "owed must be float32 on the CPU"),
        ({"param": torch.zeros(5).double()}, "param must be one of"),
        ({"param": torch.zeros(10)[::2]}, "all of param must be contiguous"),
        ({"threads": 0}, "threads must be at least 1 but is 0"),
    ],
)
def test_what_it_cannot_read_is_refused(change: dict[str, Any], message: str):
    arguments: dict[str, Any] = {
        "param": torch.zeros(5),
        "owed": torch.zeros(5),
        "step": torch.zeros(5),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.take_(**(arguments | change), share=SHARE, due=DUE)
