"""What every rule of the registry promises: one list of rules through one list of questions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learned_optim import bases
from learned_optim.bases import Basis
from learned_optim.cells import CELLS
from learned_optim.matrices import as_matrix
from learned_optim.rules import (
    L2L,
    RULES,
    Adam,
    ByLayer,
    Clock,
    Coordinates,
    Default,
    Layered,
    LearnableSGD,
    State,
    UpdateRule,
    Weights,
)
from learned_optim.rules.deferral import defer

# A new rule is one line here; further lines for configs that take other paths.
CASES: dict[str, UpdateRule] = {
    "l2l": L2L(layers=2, hidden=5),
    "l2l-raw": L2L(layers=1, hidden=3, preprocess="none", scale=1.0),
    "l2l-gru": L2L(cell="gru", layers=2, hidden=4),
    "l2l-half": L2L(layers=1, hidden=4, state="float16"),
    "l2l-peephole": L2L(cell="peephole", layers=1, hidden=4),
    "by_layer": ByLayer(layers=1, hidden=4),
    "learnable_sgd": LearnableSGD(),
    "learnable_sgd-momentum": LearnableSGD(momentum=0.9),
    "adam": Adam(),
    "layered": Layered(),
    "default": Default(hidden=3, controller=4),
    "default-hand": Default(hidden=0, controller=0),
}
# A matrix, for rules with a stage for matrices; others see its coordinates alone.
SHAPE = (4, 3)
CONVOLUTION = (2, 3, 2)
N = 12
rules = pytest.mark.parametrize("rule", CASES.values(), ids=CASES.keys())


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights_of(rule: UpdateRule, seed: int = 0) -> Weights:
    drawn = rule.init_weights(torch.Generator().manual_seed(seed))
    noise = {key: 0.1 * draw(tuple(w.shape), seed) for key, w in drawn.items()}
    return {key: w.double() + noise[key] for key, w in drawn.items()}


def whole_step(
    rule: UpdateRule,
    coords: Coordinates,
    state: State,
    step: Tensor,
    weights: Weights,
    shape: tuple[int, ...] = SHAPE,
) -> tuple[Tensor, State]:
    """All stages on whole tensors, `(..., N)`."""
    basis = None
    if rule.has_basis(shape):
        grad, state, basis = seen(rule, coords.grad, state, bool(bases.is_due(step)), shape)
        coords = coords._replace(grad=grad)
    coordinates = {key: state[key] for key in rule.keys_per("coordinate")}
    signals, tensors = controlled(rule, coords, state, step, weights, shape)
    moved, coordinates = rule.update(coords, coordinates, signals, weights)
    if rule.waits(shape):
        matrix = moved.unflatten(-1, as_matrix(shape))
        moved = rule.complete(matrix, signals.squeeze(-1), basis).flatten(-2)
    if rule.owing is not None:
        key, row = rule.owing
        rows = list(coordinates[key].unbind(-2))
        moved, rows[row] = defer(moved, rows[row], signals[..., -2:, :])
        coordinates = coordinates | {key: torch.stack(rows, dim=-2)}
    kept = {} if basis is None else basis._asdict()
    return moved, {key: value.squeeze(-1) for key, value in tensors.items()} | coordinates | kept


def seen(
    rule: UpdateRule, grad: Tensor, state: State, due: bool, shape: tuple[int, ...]
) -> tuple[Tensor, State, Basis]:
    """A gradient, `(..., N)`, in its basis; the state and the basis, turned if it is due."""
    sides = as_matrix(shape)
    basis = Basis(*(state[key] for key in Basis._fields))
    found, state = bases.see(grad.unflatten(-1, sides), basis), dict(state)
    if due:
        basis, turn = bases.follow(found, basis)
        found = turn.apply(found)
        for key, row in rule.turning:
            rows = list(state[key].unbind(-2))
            rows[row] = turn.apply(rows[row].unflatten(-1, sides)).flatten(-2)
            state[key] = torch.stack(rows, dim=-2)
    return found.flatten(-2), state, basis


def controlled(
    rule: UpdateRule,
    coords: Coordinates,
    state: State,
    step: Tensor,
    weights: Weights,
    shape: tuple[int, ...] = SHAPE,
) -> tuple[Tensor, State]:
    """Sums and `control` of one tensor: signals `(..., M, 1)` and its state `(..., rows, 1)`."""
    coordinates = {key: state[key] for key in rule.keys_per("coordinate")}
    tensors = {key: state[key].unsqueeze(-1) for key in rule.keys_per("tensor")}
    shape = shape if coords.grad.shape[-1] == N else (coords.grad.shape[-1],)
    facts = torch.tensor(rule.describe(shape), dtype=coords.grad.dtype)
    sums = rule.summarize(coords, coordinates).unsqueeze(-1)
    return rule.control(sums, facts.unsqueeze(-1), tensors, Clock(step.reshape(1)), weights)


def run(
    rule: UpdateRule,
    weights: Weights,
    seed: int = 0,
    steps: int = 3,
    size: float = 1.0,
    shape: tuple[int, ...] = SHAPE,
    drift: float = 0.0,
    sign: int = 1,
    jolt: float = 1.0,
    pace: float = 0.0,
) -> tuple[list[Tensor], State]:
    """A few steps; the state is then away from zero. With a drift, the gradients agree.

    The last gradient but one is multiplied by the jolt. With a sign of -1 the same from the other
    side: parameters and gradients negated. Where the rule has a pace, its logarithm at first.
    """
    param = sign * size * draw((N,), seed + 100)
    state, moved = rule.init_state(param, shape), []
    if "gauge" in state:
        state["gauge"][1] = pace
    for k in range(1, steps + 1):
        grad = sign * (drift + draw((N,), seed + k))
        coords = Coordinates(jolt * grad if k == steps - 1 else grad, param)
        step, state = whole_step(
            rule, coords, state, torch.tensor([float(k)], dtype=torch.float64), weights, shape
        )
        param = param + step
        moved.append(step)
    return moved, state


def test_every_registered_rule_is_tested():
    assert set(RULES) == {rule.name for rule in CASES.values()}
    assert all(RULES[name].name == name for name in RULES)


@rules
def test_weights_have_the_promised_shapes_and_are_drawn_from_the_generator_alone(rule: UpdateRule):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    weights = rule.init_weights(torch.Generator().manual_seed(1))
    again = rule.init_weights(torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
    assert {key: tuple(w.shape) for key, w in weights.items()} == rule.weight_shapes()
    assert all(w.dtype == torch.float32 and bool(w.isfinite().all()) for w in weights.values())
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@rules
def test_mirrored_weights_answer_to_the_opposite_gradient_with_the_opposite_step(rule: UpdateRule):
    weights = weights_of(rule)
    images = rule.mirrored(weights)
    even = {key: (value + images[key]) / 2 for key, value in weights.items()}
    for there, back in ((weights, images), (even, even)):
        for moved, opposite in zip(run(rule, there)[0], run(rule, back, sign=-1)[0], strict=True):
            torch.testing.assert_close(moved, -opposite, rtol=1e-9, atol=1e-14)
    assert any(bool(step.any()) for step in run(rule, even)[0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("preprocess", ["log_sign", "none"])
def test_the_odd_part_of_l2l_is_a_rule_of_twice_as_many_units(cell: str, preprocess):
    rule = L2L(cell=cell, layers=2, hidden=3, preprocess=preprocess)
    weights = weights_of(rule)
    wide, both = rule.odd_part(weights)
    assert {key: tuple(value.shape) for key, value in both.items()} == wide.weight_shapes()
    for key, value in wide.mirrored(both).items():
        assert torch.equal(value, both[key])
    grads = [draw((N,), seed) for seed in range(5)]
    halves = [steps_on(rule, weights, [sign * grad for grad in grads]) for sign in (1, -1)]
    for found, first, second in zip(steps_on(wide, both, grads), *halves, strict=True):
        torch.testing.assert_close(found, (first - second) / 2)


def steps_on(rule: L2L, weights: Weights, grads: list[Tensor]) -> list[Tensor]:
    state, found = rule.init_state(grads[0]), []
    for grad in grads:
        step, state = rule.update(Coordinates(grad, grad), state, grad.new_zeros(0, 1), weights)
        found.append(step)
    return found


@rules
def test_mirroring_is_its_own_inverse_and_takes_leading_dimensions(rule: UpdateRule):
    weights, other = weights_of(rule), weights_of(rule, seed=1)
    again = rule.mirrored(rule.mirrored(weights))
    both = {key: torch.stack((value, other[key])) for key, value in weights.items()}
    for key, value in rule.mirrored(both).items():
        assert torch.equal(again[key], weights[key])
        assert torch.equal(value[0], rule.mirrored(weights)[key])
        assert torch.equal(value[1], rule.mirrored(other)[key])


@rules
@pytest.mark.parametrize("shape", [(), (0,), (4, 3)])
def test_state_starts_at_zero_in_the_promised_layout(rule: UpdateRule, shape: tuple[int, ...]):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        state = rule.init_state(torch.ones(shape, dtype=dtype))
        basis = {key: state.pop(key) for key in Basis._fields if rule.has_basis(shape)}
        assert {key: tuple(value.shape) for key, value in basis.items()} == (
            bases.shapes(*as_matrix(shape)) if basis else {}
        )
        assert state.keys() == rule.state_spec.keys()
        for key, spec in rule.state_spec.items():
            per_coordinate = spec.per == "coordinate"
            assert state[key].shape == ((spec.rows, *shape) if per_coordinate else (spec.rows,))
            assert state[key].dtype == (torch.float64 if dtype == torch.float64 else spec.dtype)
            assert not state[key].any()


@rules
def test_the_config_rebuilds_the_rule(rule: UpdateRule):
    assert RULES[rule.name](**rule.config()) == rule


@rules
def test_a_step_keeps_the_layout_of_the_state_and_changes_nothing_that_it_is_given(
    rule: UpdateRule,
):
    weights = weights_of(rule)
    _, state = run(rule, weights)
    coords = Coordinates(draw((N,), 50), draw((N,), 51))
    given = [coords.grad, coords.param, *state.values(), *weights.values()]
    copies = [t.clone() for t in given]
    step, new = whole_step(rule, coords, state, torch.tensor(4.0), weights)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
    assert step.shape == (N,)
    assert bool(step.isfinite().all())
    assert {key: value.shape for key, value in new.items()} == {
        key: value.shape for key, value in state.items()
    }
    assert all(value.dtype == torch.float64 for value in (step, *new.values()))


@rules
@pytest.mark.parametrize("idle", [False, True])
def test_the_lean_rule_takes_the_same_steps(rule: UpdateRule, idle: bool):
    weights = weights_of(rule)
    if idle:
        weights = {key: 0 * w if ".head." in key else w for key, w in weights.items()}
    lean, kept = rule.lean(weights)
    assert {key: tuple(w.shape) for key, w in kept.items()} == lean.weight_shapes()
    whole, thin = (run(r, w, steps=30)[0] for r, w in ((rule, weights), (lean, kept)))
    assert all(torch.equal(a, b) for a, b in zip(whole, thin, strict=True))


@pytest.mark.parametrize("level", ["coordinate", "tensor"])
def test_default_does_without_a_level_whose_head_is_zero(level: str):
    rule = CASES["default"]
    assert isinstance(rule, Default)
    weights = weights_of(rule)
    assert rule.lean(weights) == (rule, weights)
    for key in ("w", "b"):
        weights[f"{level}.head.{key}"].zero_()
    lean, kept = rule.lean(weights)
    assert lean == replace(rule, **{{"coordinate": "hidden", "tensor": "controller"}[level]: 0})
    assert not any(key.startswith(level) for key in kept)


@rules
def test_steps_are_deterministic(rule: UpdateRule):
    (first, state), (second, again) = (run(rule, weights_of(rule)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(state[key], again[key]) for key in state)


@rules
def test_update_sees_single_coordinates_only(rule: UpdateRule):
    weights = weights_of(rule)
    _, state = run(rule, weights)
    coords = Coordinates(draw((N,), 50), draw((N,), 51))
    signals, _ = controlled(rule, coords, state, torch.tensor(4.0), weights)
    state = {key: state[key] for key in rule.keys_per("coordinate")}
    sums = rule.summarize(coords, state)
    whole, whole_state = rule.update(coords, state, signals, weights)
    for cuts in ((0, N), (0, 1, N), (0, 3, 4, N)):
        for start, stop in itertools.pairwise(cuts):
            part = slice(start, stop)
            step, new = rule.update(
                Coordinates(coords.grad[part], coords.param[part]),
                {key: value[:, part] for key, value in state.items()},
                signals.expand(-1, stop - start),
                weights,
            )
            torch.testing.assert_close(step, whole[part], rtol=1e-12, atol=1e-15)
            for key, value in new.items():
                torch.testing.assert_close(value, whole_state[key][:, part], rtol=1e-12, atol=1e-15)
        parts = [
            rule.summarize(
                Coordinates(coords.grad[a:b], coords.param[a:b]),
                {key: value[:, a:b] for key, value in state.items()},
            )
            for a, b in itertools.pairwise(cuts)
        ]
        assert sums.shape == (rule.summary_size,)
        torch.testing.assert_close(torch.stack(parts).sum(0), sums)


@rules
@pytest.mark.parametrize("own_weights", [False, True])
def test_leading_dimensions_equal_the_slices_one_by_one(rule: UpdateRule, own_weights: bool):
    seeds = range(3)
    each = [weights_of(rule, seed if own_weights else 0) for seed in seeds]
    states = [run(rule, weights, seed)[1] for seed, weights in zip(seeds, each, strict=True)]
    coords = Coordinates(draw((3, N), 50), draw((3, N), 51))
    now = torch.tensor(4.0, dtype=torch.float64)
    weights = (
        {key: torch.stack([w[key] for w in each]) for key in each[0]} if own_weights else each[0]
    )
    state = {key: torch.stack([s[key] for s in states]) for key in states[0]}
    step, new = whole_step(rule, coords, state, now, weights)
    for i in seeds:
        alone = Coordinates(coords.grad[i], coords.param[i])
        expected, expected_state = whole_step(rule, alone, states[i], now, each[i])
        torch.testing.assert_close(step[i], expected)
        for key, value in expected_state.items():
            torch.testing.assert_close(new[key][i], value)


@rules
def test_control_of_many_tensors_equals_each_alone(rule: UpdateRule):
    weights, sizes = weights_of(rule), (3, 5, 1)
    steps = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    states, sums, alone = [], [], []
    for index, size in enumerate(sizes):
        coords = Coordinates(draw((size,), index), draw((size,), 9 + index))
        state = rule.init_state(coords.param)
        coordinates = {key: state[key] for key in rule.keys_per("coordinate")}
        states.append({key: state[key] for key in rule.keys_per("tensor")})
        sums.append(rule.summarize(coords, coordinates))
        alone.append(controlled(rule, coords, state, steps[index], weights))
    facts = torch.tensor([rule.describe((size,)) for size in sizes], dtype=torch.float64).mT
    joined = {key: torch.stack([s[key] for s in states], dim=-1) for key in states[0]}
    signals, new = rule.control(torch.stack(sums, -1), facts, joined, Clock(steps), weights)
    torch.testing.assert_close(signals, torch.cat([one for one, _ in alone], dim=-1))
    for key, value in new.items():
        torch.testing.assert_close(value, torch.cat([one[key] for _, one in alone], dim=-1))


@rules
def test_vmap_over_weights_equals_the_slices_one_by_one(rule: UpdateRule):
    each = [weights_of(rule, seed) for seed in range(3)]
    _, state = run(rule, each[0])
    coords, step = Coordinates(draw((N,), 50), draw((N,), 51)), torch.tensor(4.0)
    stacked = {key: torch.stack([w[key] for w in each]) for key in each[0]}

    def one(weights: Weights) -> tuple[Tensor, State]:
        return whole_step(rule, coords, state, step, weights)

    found, _ = torch.func.vmap(one)(stacked)
    for index, weights in enumerate(each):
        torch.testing.assert_close(found[index], one(weights)[0])


@rules
def test_the_step_is_differentiable_in_every_weight(rule: UpdateRule):
    weights = weights_of(rule)
    keys = list(weights)

    def f(*values: Tensor) -> Tensor:
        # Small parameters, vectors, convolutions, gradients that agree and one that turns back:
        # some weights matter only there.
        given = dict(zip(keys, values, strict=True))
        cases = [
            (1.0, SHAPE, 0.0),
            (1e-3, SHAPE, 0.0),
            (1.0, (N,), 0.0),
            (1.0, CONVOLUTION, 3.0),
        ]
        runs = (
            run(rule, given, steps=6, size=size, shape=shape, drift=drift)[0]
            for size, shape, drift in cases
        )
        turned = run(rule, given, steps=16, drift=3.0, jolt=-8.0)[0]
        # No matrix of twelve numbers is so uneven that it would have no basis.
        straight = replace(rule, basis=False) if isinstance(rule, Default) else rule
        others = run(straight, given, steps=6)[0]
        grown = run(rule, given, steps=6, pace=2.0)[0]
        every = (*runs, turned, others, grown)
        return torch.stack([torch.stack(m).square().sum() for m in every]).sum()

    inputs = [w.requires_grad_() for w in weights.values()]
    gradients = torch.autograd.grad(f(*inputs), inputs)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert all(bool(g.any()) for g in gradients)
    direction = [draw(tuple(w.shape), 9) for w in inputs]
    eps = 1e-6
    ends = [
        f(*(w.detach() + sign * eps * d for w, d in zip(inputs, direction, strict=True)))
        for sign in (1, -1)
    ]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * eps), rtol=1e-5, atol=1e-10)


@rules
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-30, 1e-20, 1.0, 1e18])
def test_gradients_of_any_size_give_finite_steps(rule: UpdateRule, size: float):
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    coords = Coordinates(torch.full((N,), size), torch.ones(N))
    state = {key: value.float() for key, value in rule.init_state(coords.param, SHAPE).items()}
    step, state = whole_step(rule, coords, state, torch.tensor(1.0), weights)
    assert all(bool(t.isfinite().all()) for t in (step, *state.values()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2L(cell="transformer"), "cell must be one of"),
        (lambda: L2L(layers=0), r"layers must be in \[1, 8\] but is 0"),
        (lambda: L2L(hidden=1000), r"hidden must be in \[1, 256\] but is 1000"),
        (lambda: L2L(p=0.0), r"p must be in"),
        (lambda: L2L(preprocess="sign"), "preprocess must be"),  # type: ignore[arg-type]
        (lambda: LearnableSGD(learning_rate=0.0), "learning_rate must be in"),
        (lambda: LearnableSGD(momentum=1.0), "momentum must be in"),
        (lambda: Adam(beta1=1.0), "beta1 must be in"),
        (lambda: Adam(eps=0.0), "eps must be in"),
        (lambda: Default(hidden=-1), r"hidden must be in \[0, 64\] but is -1"),
        (lambda: Default(controller=200), r"controller must be in \[0, 128\] but is 200"),
    ],
)
def test_configs_out_of_range_are_refused(make: object, message: str):
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
