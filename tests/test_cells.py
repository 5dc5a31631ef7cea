"""Each cell in float64 against an independent reference: torch.nn's, or one unit at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from learned_optim.cells import CELLS

F, H, N = 3, 4, 6


def draw(name: str, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`x`, a state away from zero, and weights away from their initial range, float64."""
    generator = torch.Generator().manual_seed(seed)
    cell = CELLS[name]
    weights = {
        key: torch.randn(shape, generator=generator, dtype=torch.float64)
        for key, shape in cell.weight_shapes(F, H).items()
    }
    x = torch.randn(F, N, generator=generator, dtype=torch.float64)
    state = torch.randn(cell.state_vectors * H, N, generator=generator, dtype=torch.float64)
    return x, state, weights


def load(module: nn.RNNCellBase, weights: dict[str, Tensor], order: list[int]) -> None:
    """Copy weights into torch's cell; block number i of torch is block `order[i]` of ours."""
    rows = torch.cat([torch.arange(block * H, (block + 1) * H) for block in order])
    with torch.no_grad():
        module.weight_ih.copy_(weights["w_ih"][rows])
        module.weight_hh.copy_(weights["w_hh"][rows])
        module.bias_ih.copy_(weights["b"][rows])  # type: ignore[union-attr]
        module.bias_hh.zero_()  # type: ignore[union-attr]


def test_rnn_equals_torch():
    x, h, weights = draw("rnn")
    reference = nn.RNNCell(F, H).double()
    load(reference, weights, [0])
    out, state = CELLS["rnn"].function(x, h, weights)
    torch.testing.assert_close(out.T, reference(x.T, h.T))
    assert torch.equal(out, state)


def test_lstm_equals_torch():
    x, state, weights = draw("lstm")
    reference = nn.LSTMCell(F, H).double()
    load(reference, weights, [0, 1, 3, 2])
    h, c = reference(x.T, (state[:H].T, state[H:].T))
    out, new = CELLS["lstm"].function(x, state, weights)
    torch.testing.assert_close(out.T, h)
    torch.testing.assert_close(new, torch.cat((h.T, c.T)))


def test_gru_equals_torch():
    x, h, weights = draw("gru")
    reference = nn.GRUCell(F, H).double()
    load(reference, weights, [0, 1, 2])
    with torch.no_grad():
        reference.bias_hh[2 * H :] = weights["b_hn"]
    out, state = CELLS["gru"].function(x, h, weights)
    torch.testing.assert_close(out.T, reference(x.T, h.T))
    assert torch.equal(out, state)


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def pre(weights: dict[str, Tensor], x: list[float], h: list[float], row: int) -> float:
    """One row of `W x + U h + b`, as a sum of numbers."""
    w_ih, w_hh, b = (weights[key].tolist() for key in ("w_ih", "w_hh", "b"))
    total = b[row]
    total += sum(w * value for w, value in zip(w_ih[row], x, strict=True))
    return total + sum(w * value for w, value in zip(w_hh[row], h, strict=True))


def coupled_unit(
    weights: dict[str, Tensor], x: list[float], h: list[float], c: float, unit: int
) -> tuple[float, float]:
    f, o, g = (pre(weights, x, h, gate * H + unit) for gate in range(3))
    c = sigmoid(f) * c + (1 - sigmoid(f)) * math.tanh(g)
    return sigmoid(o) * math.tanh(c), c


def peephole_unit(
    weights: dict[str, Tensor], x: list[float], h: list[float], c: float, unit: int
) -> tuple[float, float]:
    i, f, o, g = (pre(weights, x, h, gate * H + unit) for gate in range(4))
    p_i, p_f, p_o = (weights["peep"][gate * H + unit].item() for gate in range(3))
    new = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * math.tanh(g)
    return sigmoid(o + p_o * new) * math.tanh(new), new


@pytest.mark.parametrize(
    ("name", "reference"), [("coupled", coupled_unit), ("peephole", peephole_unit)]
)
def test_cells_without_a_torch_twin_equal_their_formula_unit_by_unit(
    name: str, reference: Callable[..., tuple[float, float]]
):
    x, state, weights = draw(name)
    out, new = CELLS[name].function(x, state, weights)
    for n in range(N):
        features, h = x[:, n].tolist(), state[:H, n].tolist()
        for unit in range(H):
            h_new, c_new = reference(weights, features, h, state[H + unit, n].item(), unit)
            assert out[unit, n].item() == pytest.approx(h_new, rel=1e-12)
            assert new[unit, n].item() == pytest.approx(h_new, rel=1e-12)
            assert new[H + unit, n].item() == pytest.approx(c_new, rel=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_leading_dimensions_equal_the_slices_one_by_one(name: str):
    drawn = [draw(name, seed) for seed in range(3)]
    x, state = (torch.stack([d[part] for d in drawn]) for part in (0, 1))  # type: ignore[misc]
    weights = {key: torch.stack([d[2][key] for d in drawn]) for key in drawn[0][2]}
    out, new = CELLS[name].function(x, state, weights)
    for index, slice_ in enumerate(drawn):
        expected_out, expected_new = CELLS[name].function(*slice_)
        torch.testing.assert_close(out[index], expected_out)
        torch.testing.assert_close(new[index], expected_new)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_every_weight_are_right(name: str):
    x, state, weights = draw(name)
    keys = list(weights)

    def f(x: Tensor, state: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return CELLS[name].function(x, state, dict(zip(keys, values, strict=True)))

    inputs = [t.requires_grad_() for t in (x, state, *weights.values())]
    assert torch.autograd.gradcheck(f, inputs)


@pytest.mark.parametrize("name", CELLS)
def test_initial_weights_have_the_shapes_the_range_and_the_forget_bias(name: str):
    cell = CELLS[name]
    weights = cell.init_weights(F, 16, torch.Generator().manual_seed(0), forget_bias=3.0)
    again = cell.init_weights(F, 16, torch.Generator().manual_seed(0), forget_bias=3.0)
    assert {key: tuple(w.shape) for key, w in weights.items()} == cell.weight_shapes(F, 16)
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    blocks = weights["b"].view(-1, 16)
    for index, block in enumerate(blocks):
        shift = 3.0 if index == cell.forget_gate else 0.0
        assert (block - shift).abs().max() <= 0.25
    assert weights["w_ih"].abs().max() <= 0.25
