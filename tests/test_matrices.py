"""Orthogonalisation against the singular value decomposition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learned_optim import matrices
from learned_optim.matrices import as_matrix, in_bfloat16, orthogonalize, straighten

SHAPES = pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4), (3, 4, 20), (2, 3, 20, 4)])


def conditioned(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Singular values from 1 to 10, random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(drawn, full_matrices=False)
    return u @ torch.diag_embed(torch.linspace(1, 10, s.shape[-1]).double().expand_as(s)) @ v


@SHAPES
def test_singular_values_come_near_one_and_their_vectors_stay(shape: tuple[int, ...]):
    matrix = conditioned(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    # In the basis of its singular vectors the result is diagonal: the vectors have stayed.
    found = u.mT @ orthogonalize(matrix) @ v.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < values.min() < values.max() < 1.3
    torch.testing.assert_close(found, torch.diag_embed(values), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1.0, 1e20, 1e37])
def test_the_scale_does_not_matter_in_float32(scale: float):
    matrix = conditioned((6, 10)).float()
    expected = orthogonalize(matrix)
    # Numbers below 1e-38 have fewer digits.
    torch.testing.assert_close(
        orthogonalize(matrix * scale), expected, rtol=0, atol=1e-2 if scale < 1e-38 else 1e-4
    )


@pytest.mark.parametrize("has", [False, True])
def test_large_matrices_may_run_in_bfloat16(has: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matrices, "CPU_HAS_BFLOAT16", has)
    monkeypatch.setattr(matrices, "CPU_BFLOAT16_FROM", 16)
    large, small, double = (conditioned(s) for s in ((16, 20), (15, 20), (16, 20)))
    large, small = large.float(), small.float()
    assert [in_bfloat16(x) for x in (large, small, double)] == [has, False, False]
    found = orthogonalize(large)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, orthogonalize(double).float(), rtol=0, atol=0.02)
    assert 0.6 < torch.linalg.svdvals(found).min() < torch.linalg.svdvals(found).max() < 1.3


@pytest.mark.parametrize("shape", [(6, 12), (3, 5, 40), (40, 5), (1, 7)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_way_by_the_gram_matrix_is_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch
):
    matrix = conditioned(shape).to(dtype)
    matrix[..., -1, :] *= 1e-5  # close to singular
    taken = []
    way = matrices._iterate_gram
    monkeypatch.setattr(matrices, "_iterate_gram", lambda *args: taken.append(1) or way(*args))
    found = orthogonalize(matrix)
    monkeypatch.setattr(matrices, "WIDE", math.inf)
    torch.testing.assert_close(found, orthogonalize(matrix), rtol=0, atol=close)
    assert taken == [1]


def test_the_gram_matrix_is_made_anew_before_rounding_shows():
    u, _, v = torch.linalg.svd(conditioned((6, 40)), full_matrices=False)
    matrix = u @ torch.logspace(0, -2, 6).double().diag() @ v
    found = orthogonalize(matrix.float()).double()
    torch.testing.assert_close(found, orthogonalize(matrix), rtol=0, atol=3e-5)


@pytest.mark.parametrize("shape", [(20, 4), (4, 20), (3, 6, 5)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_root_mean_square_is_found_on_the_way(shape: tuple[int, ...], scale: float, sign: int):
    matrix = sign * (1 + conditioned(shape).abs())  # all of one sign
    rms = matrix.square().mean((-2, -1), keepdim=True).sqrt()
    found = straighten((scale * matrix).float())[1]
    torch.testing.assert_close(found / scale, rms.float())


def test_a_batch_is_its_matrices_one_by_one():
    batch = conditioned((3, 5, 7))
    for index in range(3):
        torch.testing.assert_close(orthogonalize(batch)[index], orthogonalize(batch[index]))


@pytest.mark.parametrize("shape", [(9, 7), (40, 5), (2, 3, 9, 4)])
def test_a_tall_matrix_is_its_transpose_and_stays_in_rows(shape: tuple[int, ...]):
    matrix = conditioned(shape)
    found = orthogonalize(matrix)
    torch.testing.assert_close(found, orthogonalize(matrix.mT.contiguous()).mT)
    # What is added to it lies so too: across the memory that takes ten times as long.
    assert found.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_matrix_stays_zero_and_has_a_derivative(dtype: torch.dtype):
    matrix = torch.zeros(2, 4, 6, dtype=dtype)
    matrix[1] = conditioned((4, 6)).to(dtype)
    matrix.requires_grad_()
    result = orthogonalize(matrix)
    assert not result[0].any()
    assert result[1].any()
    (gradient,) = torch.autograd.grad(result.square().sum() + result.sum(), matrix)
    assert bool(gradient.isfinite().all())
    assert gradient[1].any()


@pytest.mark.parametrize("shape", [(3, 4), (3, 8), (4, 3), (8, 3)])
def test_the_derivative_is_right(shape: tuple[int, ...]):
    matrix = conditioned(shape).requires_grad_()
    assert torch.autograd.gradcheck(orthogonalize, (matrix,))


def test_a_number_that_is_not_finite_does_not_hide():
    matrix = conditioned((4, 4))
    matrix[1, 2] = torch.inf
    assert not orthogonalize(matrix).isfinite().any()


@pytest.mark.parametrize(
    ("shape", "matrix"), [((3, 4), (3, 4)), ((8, 3, 5, 5), (8, 75)), ((2, 0, 3), (2, 0))]
)
def test_tensors_are_matrices_of_the_first_dimension(
    shape: tuple[int, ...], matrix: tuple[int, int]
):
    assert as_matrix(shape) == matrix


def test_the_quintics_bring_all_singular_values_into_the_band_and_leave_room_above_one():
    values = torch.linspace(0.003, 1.03, 100_000, dtype=torch.float64)
    for a, b, c in matrices.QUINTICS:
        values = a * values + b * values**3 + c * values**5
    assert 0.77 <= values.min() < values.max() <= 1.2
    small = torch.tensor(1e-6, dtype=torch.float64)
    lift = math.prod(a for a, _, _ in matrices.QUINTICS)
    for a, b, c in matrices.QUINTICS:
        small = a * small + b * small**3 + c * small**5
    assert small == pytest.approx(1e-6 * lift, rel=1e-3)
    assert lift > 250


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rank 1", "rank 3", "signs", "few rows", "constant"])
def test_rounding_does_not_lift_a_singular_value_out_of_the_basin(kind: str, dtype: torch.dtype):
    draw = torch.Generator().manual_seed(1)
    rank = 3 if kind == "rank 3" else 1
    left, right = torch.randn(256, rank, generator=draw), torch.randn(rank, 300, generator=draw)
    matrix = left @ right
    if kind == "signs":
        matrix = matrix.sign()
    if kind == "few rows":
        matrix[3:] = 0
    if kind == "constant":
        matrix = torch.ones(256, 300)
    x = (matrix / torch.linalg.vector_norm(matrix)).to(dtype)
    found = matrices._iterate_matrix(x, matrices.QUINTICS).float()
    assert 0.7 < torch.linalg.matrix_norm(found, 2) < 1.25
