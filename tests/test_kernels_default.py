"""The kernels of the rule `default` against the rule itself in float64, on every instruction set.

Expected rounding: activations to 4e-7 and root, logarithm and moments to a few units in float32's
last place; so h and c differ by under 3e-6, moments by 1e-6 of their size, steps by under 2e-6
of `LARGEST` times their length, sums by 1e-6 of theirs.
"""

from __future__ import annotations

import pytest
import torch

from learned_optim import kernels
from learned_optim.kernels import build, default_runs, native
from learned_optim.meta_training import fused
from learned_optim.meta_training.unroll import Layout, apply_rule, initial_state, make_clock
from learned_optim.rules import Coordinates, Default
from learned_optim.rules.default import (
    BENDS,
    DEAD,
    INPUTS,
    LARGEST,
    SIGNALS,
    SUMS,
)

SHAPES = ((6, 4), (1,), (), (63,), (8, 8), (65,), (0,), (3, 2, 2, 2), (2049,), (7, 31))
LEAD = (2, 3)


@pytest.fixture(scope="module", autouse=True)
def _built():
    if not kernels.available():
        try:
            build.build()
        except build.BuildError as problem:
            pytest.skip(str(problem))
        native._load.cache_clear()


@pytest.fixture(params=native.LEVELS)
def level(request, monkeypatch):
    if native.LEVELS.index(request.param) > native.best_level():
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setenv("LEARNED_OPTIM_ISA", request.param)
    return request.param


class Case:
    """Runs in flight, `LEAD` of them, each with weights of its own."""

    def __init__(self, rule: Default, shapes=SHAPES, lead=LEAD) -> None:
        self.rule = rule
        self.rng = torch.Generator().manual_seed(1)
        drawn = rule.init_weights(self.rng)
        self.weights = {
            key: value + 0.3 * self.randn(*lead, *value.shape) for key, value in drawn.items()
        }
        params = {str(i): self.randn(*lead, *shape) for i, shape in enumerate(shapes)}
        self.layout = Layout(rule, params, len(lead))
        n = self.layout.coordinates
        # Gradients of all sizes, and some that are zero.
        grad = self.randn(*lead, n) * 10 ** (-8 * torch.rand(n, generator=self.rng))
        grad[..., ::7] = 0
        self.coords = Coordinates(grad, self.layout.join(params))
        self.state = initial_state(rule, grad, self.layout)
        self.state["moments"][..., 0, :] = 0.3 * grad.flip(-1)
        self.state["moments"][..., 1, :] = grad.square()
        if rule.hidden:
            self.state["cell"] = self.randn(*self.state["cell"].shape).clamp(-0.9, 0.9)

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.rng)

    def coordinates_state(self):
        return {key: self.state[key] for key in self.rule.keys_per("coordinate")}

    def double(self):
        """Coordinates, state of the coordinates and weights in float64."""
        state = {key: value.double() for key, value in self.coordinates_state().items()}
        weights = {key: value.double() for key, value in self.weights.items()}
        return Coordinates(*(x.double() for x in self.coords)), state, weights

    def signals(self, step: int = 30) -> torch.Tensor:
        """Of the controller, in float64."""
        coords, state, weights = self.double()
        sums = self.layout.summarize(self.rule, coords, state)
        per_tensor = {key: self.state[key].double() for key in self.rule.keys_per("tensor")}
        clock = make_clock(step, None, self.layout, sums)
        with torch.no_grad():
            return self.rule.control(sums, self.layout.facts.double(), per_tensor, clock, weights)[
                0
            ]


def test_the_kernels_sizes_are_the_rules():
    assert len(SUMS) == default_runs.SUMS
    assert len(SIGNALS) == default_runs.SIGNALS
    assert (default_runs.INPUTS, default_runs.BENDS) == (INPUTS, BENDS)
    source = (build.SOURCES / "default_rule.h").read_text()
    assert f"DEAD = {DEAD:.0e}f" in source
    for hidden in (0, 1, 5):
        shapes = Default(hidden=hidden).weight_shapes()
        counts = [torch.Size(s).numel() for k, s in shapes.items() if k.startswith("coordinate.")]
        assert kernels.default_weight_count(hidden) == sum(counts)


def test_sums_equal_the_rule(level):
    case = Case(Default(hidden=0))
    coords, state, _ = case.double()
    expected = case.layout.summarize(case.rule, coords, state)
    with torch.no_grad():
        sums = fused.summarize(case.rule, case.coords, case.coordinates_state(), case.layout.sizes)
    assert sums is not None
    assert sums.shape == expected.shape == (*LEAD, len(SUMS), len(SHAPES))
    scale = expected.abs().clamp_min(1e-30)
    # `gm` may cancel: it is measured against the bound of Cauchy and Schwarz.
    scale[..., 3, :] = (expected[..., 0, :] * expected[..., 2, :]).sqrt().clamp_min(1e-30)
    assert ((sums - expected).abs() / scale).max() < 1e-6


@pytest.mark.parametrize("hidden", [0, 1, 3, 4, 8, 9])
@torch.no_grad()
def test_steps_and_state_equal_the_rule(level, hidden):
    case = Case(Default(hidden=hidden))
    coords, state, weights = case.double()
    signals = case.signals()
    expected, after = case.rule.update(coords, state, case.layout.spread(signals), weights)
    found = fused.update(
        case.rule,
        case.weights,
        case.coords,
        case.coordinates_state(),
        signals.float(),
        case.layout.sizes,
    )
    assert found is not None
    step, found_state = found
    length = case.layout.spread(signals)[..., SIGNALS.index("length"), :]
    assert ((step - expected).abs() / (LARGEST * length)).max() < 2e-6
    m, v = (found_state["moments"] - after["moments"]).abs().unbind(-2)
    sizes = coords.grad.abs() + state["moments"][..., 0, :].abs() + 1e-30
    assert (m / sizes).max() < 1e-6
    assert (v / (sizes.square() + 1e-36)).max() < 1e-6
    if hidden:
        assert (found_state["cell"] - after["cell"]).abs().max() < 3e-6


@torch.no_grad()
def test_only_a_consumed_state_is_overwritten_and_the_result_is_the_same_bit_for_bit():
    case = Case(Default(hidden=4))
    before = {key: value.clone() for key, value in case.state.items()}
    clock = make_clock(5, 100, case.layout, case.coords.grad)
    arguments = (case.rule, case.weights, case.layout, case.coords, case.state, clock)
    step, kept = apply_rule(*arguments)
    assert all(torch.equal(case.state[key], before[key]) for key in before)
    again, consumed = apply_rule(*arguments, consume=True)
    assert torch.equal(step, again)
    assert all(torch.equal(kept[key], consumed[key]) for key in kept)
    assert consumed["cell"].data_ptr() == case.state["cell"].data_ptr()
    assert not torch.equal(case.state["cell"], before["cell"])


@torch.no_grad()
def test_one_set_of_weights_serves_all_runs():
    case = Case(Default(hidden=4), lead=(3,))
    case.weights = {key: value[0] for key, value in case.weights.items()}
    clock = make_clock(5, 100, case.layout, case.coords.grad)
    arguments = (case.rule, case.weights, case.layout, case.coords, case.state, clock)
    step, _ = apply_rule(*arguments)
    with torch.enable_grad():  # no kernel
        expected, _ = apply_rule(*arguments)
    torch.testing.assert_close(step, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_threads_do_not_change_a_bit():
    case = Case(Default(hidden=4), shapes=((40_000,), (3,), (20_000,)), lead=(2,))
    grad, param = case.coords
    moments, cell = case.state["moments"], case.state["cell"]
    sizes, signals = case.layout.sizes, case.signals().float()
    flat = torch.cat(
        [v.flatten(1) for k, v in case.weights.items() if k.startswith("coordinate.")], dim=1
    )
    found = []
    for threads in (1, 3):
        m, c = moments.clone(), cell.clone()
        sums = kernels.default_sums(grad, param, m, sizes, threads=threads)
        step = kernels.default_step_(
            grad, param, m, c, sizes, signals, flat, hidden=4, threads=threads
        )
        found.append((sums, step, m, c))
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (3, 4)}, r"sizes must add up to 8 but are \[3, 4\]"),
        ({"sizes": (9, -1)}, "sizes must add up to 8"),
        ({"grads": torch.zeros(8)}, r"grads must be \(P, N\)"),
        ({"moments": torch.zeros(2, 8)}, r"moments must have shape \(1, 2, 8\)"),
        ({"cell": None}, "cell must be given where hidden > 0"),
        ({"cell": torch.zeros(1, 4, 8)}, r"cell must have shape \(1, 8, 8\)"),
        ({"signals": torch.zeros(1, 11, 1)}, r"signals must have shape \(1, 11, 2\)"),
        ({"weights": torch.zeros(1, 3)}, "weights must have shape"),
        ({"hidden": -1}, r"hidden must be in \[0, 256\] but is -1"),
    ],
)
def test_wrong_tensors_are_refused(change, message):
    arguments = {
        "grads": torch.zeros(1, 8),
        "params": torch.zeros(1, 8),
        "moments": torch.zeros(1, 2, 8),
        "cell": torch.zeros(1, 8, 8),
        "sizes": (5, 3),
        "signals": torch.zeros(1, 11, 2),
        "weights": torch.zeros(1, kernels.default_weight_count(4)),
        "hidden": 4,
    }
    with pytest.raises(ValueError, match=message):
        kernels.default_step_(**(arguments | change))
