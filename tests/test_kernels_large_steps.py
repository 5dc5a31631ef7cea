"""The kernels around the orthogonalisation of large matrices: `normalize` and `finish_`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.rules.deferral import defer

COUNTS = [0, 1, 15, 64, 65, (1 << 16) + 7, (1 << 18) + 3]
TERMS: dict[str, Any] = {"blend": 0.97, "size": 0.02, "share": 0.5, "due": 0.08}

pytestmark = pytest.mark.usefixtures("built_kernels")


def drawn(count: int, rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    return tuple(torch.randn(count, generator=generator) for _ in range(rows))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_step_is_divided_by_its_norm(level: str, count: int, dtype: torch.dtype, scale: float):
    step = scale * drawn(count, 1)[0]
    found, norm = kernels.normalize(step, dtype)
    expected = step.double().norm()
    assert norm == pytest.approx(float(expected), rel=1e-6)
    assert found.dtype == dtype
    aim = step.double() / expected
    torch.testing.assert_close(found.double(), aim, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("size", [1.2e-38, 1.5e38, 3e38])
def test_the_norm_may_be_as_small_or_as_large_as_float32_holds(level: str, size: float):
    found, _ = kernels.normalize(torch.full((65,), size), torch.float32)
    torch.testing.assert_close(found, torch.full((65,), 65**-0.5), rtol=1e-6, atol=0)


def test_zero_stays_zero_and_what_is_not_finite_is_noticed(level: str):
    found, norm = kernels.normalize(torch.zeros(40), torch.float32)
    assert norm == 0
    assert torch.equal(found, torch.zeros(40))
    for value in (float("nan"), float("inf")):
        step = torch.ones(40)
        step[33] = value
        assert kernels.normalize(step, torch.bfloat16)[0].isnan().any()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("straight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mixture_is_taken(
    level: str, count: int, straight_dtype: torch.dtype, dtype: torch.dtype
):
    step, straight, param, owed = drawn(count, 4)
    straight, param = straight.to(straight_dtype), param.to(dtype)
    whole = torch.lerp(step.double(), TERMS["size"] * straight.double(), TERMS["blend"])
    terms = torch.tensor([[TERMS["share"]], [TERMS["due"]]]).double()
    taken, left = defer(whole, owed.double(), terms)
    expected = 0.99 * param.double() + 0.5 * taken
    kernels.finish_(step, straight, param, owed, lr=0.5, keep=0.99, **TERMS)
    torch.testing.assert_close(owed.double(), left, rtol=1e-6, atol=1e-6)
    exact = torch.finfo(dtype).eps
    torch.testing.assert_close(param.double(), expected, rtol=exact, atol=1e-6)


@pytest.mark.parametrize("place", [0, 70000, (1 << 18) + 2])
@pytest.mark.parametrize("broken", ["step", "straight"])
def test_nothing_is_taken_of_what_is_not_finite(level: str, place: int, broken: str):
    step, straight, param, owed = drawn((1 << 18) + 3, 4)
    {"step": step, "straight": straight}[broken][place] = float("nan")
    before = param.clone(), owed.clone()
    kernels.finish_(step, straight, param, owed, threads=2, **TERMS)
    assert torch.equal(param, before[0])
    assert torch.equal(owed, before[1])


def test_threads_change_nothing(level: str):
    found = []
    for threads in (1, 3):
        step, straight, param, owed = drawn((1 << 18) + 3, 4)
        short, norm = kernels.normalize(step, torch.float32, threads=threads)
        kernels.finish_(step, straight, param, owed, threads=threads, **TERMS)
        found.append((short, torch.tensor(norm), param, owed))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": torch.zeros(4)}, "step must have shape (5,) but has (4,)"),
        ({"owed": torch.zeros(5).double()}, "owed must be float32 on the CPU"),
        ({"straight": torch.zeros(5).half()}, "straight must be one of"),
        ({"straight": torch.zeros(4)}, "straight[0] must have 5 elements but has 4"),
        ({"param": torch.zeros(5).double()}, "param must be one of"),
        ({"threads": 0}, "threads must be at least 1 but is 0"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Any], message: str):
    names = ("step", "straight", "param", "owed")
    given: dict[str, Any] = dict(zip(names, drawn(5, 4), strict=True)) | TERMS
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.finish_(**given | change)


def test_a_dtype_that_nothing_is_multiplied_in_is_refused():
    with pytest.raises(ValueError, match="dtype must be one of"):
        kernels.normalize(torch.zeros(4), torch.float16)
