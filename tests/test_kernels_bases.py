"""The kernels behind small matrices' eigenbases: `kernels.see_` and `kernels.unsee_`."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from learned_optim import bases, kernels
from learned_optim.rules.deferral import defer
from learned_optim.rules.ranges import bounded

OPTIONS = {"memory": bases.MEMORY, "ridge": bases.RIDGE}
SHAPES = [(2, 1), (3, 5), (4, 4), (16, 16), (17, 64), (128, 10), (33, 127), (128, 128)]

pytestmark = pytest.mark.usefixtures("built_kernels")


class Case(NamedTuple):
    """Matrices of some shapes in bases of their own."""

    grads: list[Tensor]
    bases: kernels.Bases
    momenta: list[Tensor]
    shapes: list[tuple[int, int]]

    def copy(self) -> Case:
        """Of the tensors too."""
        columns = ([x.clone() for x in column] for column in self.bases)
        grads, momenta = ([x.clone() for x in column] for column in (self.grads, self.momenta))
        return Case(grads, kernels.Bases(*columns), momenta, self.shapes)

    def see(self, turns: list[int], **options: Any) -> list[Tensor]:
        return kernels.see_(
            self.grads, self.bases, self.momenta, self.shapes, turns, **OPTIONS, **options
        )


def rotation(side: int, generator: torch.Generator) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(side, side, generator=generator).double())
    return q.float().contiguous()


def case(shapes: list[tuple[int, int]], rank: int | None = None) -> Case:
    """Gradients of some rank, in bases of anywhere, with eigenvalues of all sizes."""
    generator = torch.Generator().manual_seed(0)
    found = Case([], kernels.Bases([], [], []), [], shapes)
    for rows, columns in shapes:
        grad = torch.randn(rows, columns, generator=generator)
        if rank is not None:
            narrow = torch.randn(rank, columns, generator=generator)
            grad = torch.randn(rows, rank, generator=generator) @ narrow
        found.grads.append(grad)
        sides = [rotation(side, generator) for side in (rows, columns)]
        spread = 10 ** (3 * torch.rand(1, rows + columns, generator=generator) - 3)
        for column, entry in zip(found.bases, (*sides, spread), strict=True):
            column.append(entry)  # type: ignore[attr-defined]
        found.momenta.append(torch.randn(rows, columns, generator=generator))
    return found


def exact(given: Case, index: int, turn: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """By the reference: what is seen, the three entries of the bases, the momentum."""
    grad = given.grads[index].to(dtype).view(given.shapes[index])
    grad = bounded(grad) + 0 * grad
    basis = bases.Basis(*(column[index].to(dtype) for column in given.bases))
    seen, momentum = bases.see(grad, basis), given.momenta[index].to(dtype)
    if turn != kernels.STILL:
        basis, turned = bases.follow(seen, basis, firm=turn == kernels.FIRM)
        seen, momentum = turned.apply(seen), turned.apply(momentum)
    return [seen, *basis, momentum]


def found_by(given: Case, index: int, seen: list[Tensor]) -> list[Tensor]:
    """The same after `kernels.see_`."""
    sides = [column[index] for column in given.bases]
    return [seen[index].view(given.shapes[index]), *sides, given.momenta[index]]


@pytest.mark.parametrize("turn", [kernels.STILL, kernels.TURNING, kernels.FIRM])
@pytest.mark.parametrize("rank", [None, 1])
def test_it_sees_and_turns_as_the_reference_does(level: str, rank: int | None, turn: int):
    given = case(SHAPES, rank)
    before = given.copy()
    seen = given.see([turn] * len(SHAPES))
    for index in range(len(SHAPES)):
        # A turn's rounding is the condition of what is factorised, up to 1e4 here, times 6e-8.
        bound = 1e-5 if turn == kernels.STILL else 1e-3
        for one, true in zip(found_by(given, index, seen), exact(before, index, turn), strict=True):
            scale = true.abs().max().clamp_min(1)
            assert (one - true).abs().max() < bound * scale, (SHAPES[index], one, true)


def test_it_is_as_exact_as_the_reference_in_float32(level: str):
    given = case([(96, 80)])
    before = given.copy()
    seen = given.see([kernels.TURNING])
    true = exact(before, 0, kernels.TURNING)
    reference = exact(before, 0, kernels.TURNING, torch.float32)
    for one, other, aim in zip(found_by(given, 0, seen), reference, true, strict=True):
        assert (one - aim).norm() < 2 * (other - aim).norm() + 1e-6 * aim.norm()


def test_bases_stay_orthonormal(level: str):
    given = case([(24, 40)])
    generator = torch.Generator().manual_seed(1)
    for k in range(200):
        given.grads[0] = torch.randn(24, 40, generator=generator)
        given.see([kernels.FIRM if bases.is_firm(k) else kernels.TURNING])
    for side in (given.bases.left[0], given.bases.right[0]):
        torch.testing.assert_close(side.mT @ side, torch.eye(len(side)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_short_dtypes(level: str, dtype: torch.dtype):
    given = case([(7, 19), (32, 5)])
    given = given._replace(grads=[given.grads[0].to(dtype), given.grads[1]])
    before = given.copy()
    seen = given.see([kernels.STILL, kernels.STILL])
    for index in range(2):
        true = exact(before, index, kernels.STILL)[0]
        torch.testing.assert_close(seen[index].view(true.shape).double(), true, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_turns_nothing_and_is_noticed(level: str, value: float):
    given = case([(6, 9), (6, 9)])
    given.grads[0][5, 8] = value
    before = given.copy()
    seen = given.see([kernels.TURNING, kernels.TURNING])
    assert seen[0].isnan().any()
    assert seen[1].isfinite().all()
    for column, old in zip(
        (*given.bases, given.momenta), (*before.bases, before.momenta), strict=True
    ):
        assert torch.equal(column[0], old[0])
        assert not torch.equal(column[1], old[1])


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-15, 1e20])
def test_gradients_of_any_size(level: str, size: float):
    given = case([(6, 9)])
    given.grads[0] *= size
    before = given.copy()
    seen = given.see([kernels.TURNING])
    # The reference flushes nothing, so what is seen of 1e-25 has rounding of its own.
    true = exact(before, 0, kernels.TURNING, torch.float32)
    for one, other in zip(found_by(given, 0, seen), true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_come_out_of_the_bases_and_are_taken(level: str, dtype: torch.dtype):
    given = case(SHAPES)
    params, owed = [x.to(dtype) for x in given.momenta], [0.3 * x for x in given.grads]
    steps = [0.1 * x.flatten() for x in given.grads]
    terms = torch.rand(2, len(SHAPES), generator=torch.Generator().manual_seed(2))
    expected = []
    for i, shape in enumerate(SHAPES):
        basis = bases.Basis(*(column[i].double() for column in given.bases))
        whole = bases.unsee(steps[i].double().view(shape), basis)
        taken, left = defer(whole.flatten(), owed[i].double().flatten(), terms[:, i, None].double())
        moved = 0.99 * params[i].double() + 0.5 * taken.view(shape)
        expected.append((moved, left.view(shape)))
    kernels.unsee_(steps, given.bases, params, owed, SHAPES, terms, lr=0.5, keep=0.99)
    for param, kept, (moved, left) in zip(params, owed, expected, strict=True):
        torch.testing.assert_close(kept.double(), left, rtol=0, atol=2e-6)
        torch.testing.assert_close(param.double(), moved, rtol=torch.finfo(dtype).eps, atol=2e-6)


def test_a_step_that_is_not_finite_is_not_taken(level: str):
    given = case([(5, 4), (5, 4)])
    params, owed = given.momenta, given.grads
    before = [x.clone() for x in (*params, *owed)]
    steps = [torch.ones(20), torch.ones(20)]
    steps[0][7] = float("nan")
    kernels.unsee_(steps, given.bases, params, owed, given.shapes, torch.full((2, 2), 0.5))
    changed = [not torch.equal(*pair) for pair in zip((*params, *owed), before, strict=True)]
    assert changed == [False, True, False, True]


def test_threads_change_nothing(level: str):
    found = []
    for threads in (1, 3):
        given = case([(64, 64)] * 5 + [(128, 96)])
        seen = given.see([kernels.TURNING] * 6, threads=threads)
        params = [x.clone() for x in given.momenta]
        terms = torch.full((2, 6), 0.5)
        steps = [x.clone() for x in seen]
        kernels.unsee_(
            steps, given.bases, params, given.grads, given.shapes, terms, threads=threads
        )
        found.append([*seen, *params, *given.bases.left, *given.bases.right])
    assert all(map(torch.equal, *found))


def test_no_matrix_at_all():
    given = case([])
    assert given.see([]) == []
    kernels.unsee_([], given.bases, [], [], [], torch.zeros(2, 0))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"grads": [torch.zeros(5, 3).double()]}, "grads must be one of"),
    ({"grads": [torch.zeros(4, 3)]}, "grads[0] must have 15 elements but has 12"),
    ({"momenta": []}, "momenta must be one for each of 1 matrices but are 0"),
    ({"momenta": [torch.zeros(5, 3).half()]}, "momenta must be float32"),
    ({"turns": [1, 1]}, "turns must be one for each of 1 matrices but are 2"),
    ({"turns": [3]}, "turns must be 0, 1 or 2 but are [3]"),
    ({"shapes": [(3, 5)]}, "left[0] must have 9 elements but has 25"),
    ({"shapes": [(5, -3)]}, "shapes must be of positive sides but are [(5, -3)]"),
    ({"threads": 0}, "threads must be at least 1 but is 0"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_it_cannot_read_is_refused(change: dict[str, Any], message: str):
    given: dict[str, Any] = {**case([(5, 3)])._asdict(), "turns": [1], **OPTIONS}
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.see_(**given | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [torch.zeros(15).double()]}, "steps must be one of"),
        ({"owed": [torch.zeros(3, 5).mT]}, "all of owed must be contiguous"),
        ({"params": []}, "params must be one for each of 1 matrices but are 0"),
        ({"terms": torch.zeros(2, 3)}, "terms must have shape (2, 1) but has (2, 3)"),
    ],
)
def test_steps_that_it_cannot_read_are_refused(change: dict[str, Any], message: str):
    given = case([(5, 3)])
    options: dict[str, Any] = {
        "steps": [torch.zeros(15)],
        "bases": given.bases,
        "params": given.momenta,
        "owed": given.grads,
        "shapes": given.shapes,
        "terms": torch.zeros(2, 1),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.unsee_(**options | change)
