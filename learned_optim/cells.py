"""Recurrent cells as pure functions on feature-major tensors.

A cell maps `(x, state, weights) -> (h, state)` for many coordinates at once:

- `x`: `(..., F, N)`, the input features of N coordinates;
- `state`: `(..., V * H, N)`, the V state vectors of the cell stacked, hidden vector first;
- `weights`: dict of tensors, see each cell; each may carry the same leading dimensions as `x`
  (one rule per leading index: perturbations of a meta-gradient estimator);
- `h`: `(..., H, N)`, the output.

Feature-major (the coordinates last) because N is millions and F, H are at most tens: the
matrix products then read contiguous memory, and a slice of coordinates is a cheap view.
Every cell is differentiable, vmaps, and allocates nothing that outlives the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CellWeights = Mapping[str, Tensor]
CellFunction = Callable[[Tensor, Tensor, CellWeights], tuple[Tensor, Tensor]]


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """U(-bound, bound), float32 where the generator is, whatever torch's defaults are."""
    drawn = torch.empty(shape, dtype=torch.float32, device=generator.device)
    return drawn.uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class Cell:
    """A cell's function and the facts needed to allocate its weights and state.

    Attributes:
        function: `(x, state, weights) -> (h, state)`.
        gates: number of H-row blocks in `w_ih`, `w_hh` and `b`.
        state_vectors: number V of H-row blocks in the state.
        forget_gate: index of the block that the forget-gate bias goes to, None without one.
        extra: further weights, name -> number of H-row blocks.
    """

    function: CellFunction
    gates: int
    state_vectors: int
    forget_gate: int | None = None
    extra: Mapping[str, int] | None = None

    def weight_shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights of one layer."""
        rows = self.gates * hidden
        shapes: dict[str, tuple[int, ...]] = {
            "w_ih": (rows, inputs),
            "w_hh": (rows, hidden),
            "b": (rows,),
        }
        return shapes | {name: (blocks * hidden,) for name, blocks in (self.extra or {}).items()}

    def init_weights(
        self, inputs: int, hidden: int, generator: torch.Generator, forget_bias: float = 1.0
    ) -> dict[str, Tensor]:
        """Draw one layer: U(-1/sqrt(H), 1/sqrt(H)), as torch.nn.LSTM does.

        `forget_bias` is then added to the forget gate's bias (Sonnet's LSTM, which the paper's
        authors used, adds 1; torch.nn.LSTM adds nothing), so it is part of the stored weights
        and not a constant hidden in the step.
        """
        bound = hidden**-0.5
        weights = {
            name: uniform(shape, bound, generator)
            for name, shape in self.weight_shapes(inputs, hidden).items()
        }
        if self.forget_gate is not None:
            start = self.forget_gate * hidden
            weights["b"][start : start + hidden] += forget_bias
        return weights


def affine(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """`weight @ x + bias`: `(..., R, F)`, `(..., F, N)`, `(..., R)` -> `(..., R, N)`."""
    if weight.dim() == 2 and x.dim() == 2:
        return torch.addmm(bias.unsqueeze(-1), weight, x)
    return torch.matmul(weight, x) + bias.unsqueeze(-1)


def _gates(x: Tensor, h: Tensor, weights: CellWeights) -> Tensor:
    """Pre-activations of all gates, `(..., gates * H, N)`: fresh memory, to be overwritten."""
    if x.shape[:-2] == h.shape[:-2]:  # one product is cheaper than two and their sum
        weight = torch.cat((weights["w_ih"], weights["w_hh"]), dim=-1)
        return affine(weight, torch.cat((x, h), dim=-2), weights["b"])
    return affine(weights["w_ih"], x, weights["b"]) + torch.matmul(weights["w_hh"], h)


def _tanh(x: Tensor) -> Tensor:
    """`2 sigmoid(2 x) - 1`, which torch computes in less than half the time of its tanh.

    The error is a rounding of 1, as the products before it round; of a small result, relative to
    which it is large, nothing here depends on the digits.
    """
    return torch.sigmoid(2 * x) * 2 - 1


def _column(vector: Tensor) -> Tensor:
    return vector.unsqueeze(-1)


def rnn(x: Tensor, state: Tensor, weights: CellWeights) -> tuple[Tensor, Tensor]:
    """Elman cell (Elman 1990): `h = tanh(W x + U h + b)`; equals torch.nn.RNNCell."""
    h = _tanh(_gates(x, state, weights))
    return h, h


def lstm(x: Tensor, state: Tensor, weights: CellWeights) -> tuple[Tensor, Tensor]:
    """LSTM with forget gate (Gers et al. 2000); equals torch.nn.LSTMCell.

    Gate order i, f, o, g (torch: i, f, g, o), so that the sigmoid runs over one slice.
    State: h then c.
    """
    h, c = state.chunk(2, dim=-2)
    gates, size = _gates(x, h, weights), c.shape[-2]
    # tanh(g) = 1 - 2 s with s = sigmoid(-2 g), see `_tanh`, so that i tanh(g) = i - 2 i s, and
    # likewise o tanh(c): one pass over the memory. In place are only results that no derivative
    # needs.
    gates.narrow(-2, 3 * size, size).mul_(-2)
    i, f, o, s = gates.sigmoid_().chunk(4, dim=-2)
    c = torch.addcmul(torch.addcmul(i, f, c), i, s, value=-2)
    h = torch.addcmul(o, o, (-2 * c).sigmoid_(), value=-2)
    return h, torch.cat((h, c), dim=-2)


def peephole(x: Tensor, state: Tensor, weights: CellWeights) -> tuple[Tensor, Tensor]:
    """LSTM whose gates also see the cell state (Gers and Schmidhuber 2000).

    Input and forget gate see c of the step before, the output gate the new c, through the
    diagonal weights `peep` = (p_i, p_f, p_o). Gate order i, f, o, g; state h then c.
    """
    h, c = state.chunk(2, dim=-2)
    pre_i, pre_f, pre_o, pre_g = _gates(x, h, weights).chunk(4, dim=-2)
    peep_i, peep_f, peep_o = (_column(w) for w in weights["peep"].chunk(3, dim=-1))
    i = torch.sigmoid(pre_i + peep_i * c)
    f = torch.sigmoid(pre_f + peep_f * c)
    c = f * c + i * _tanh(pre_g)
    h = torch.sigmoid(pre_o + peep_o * c) * _tanh(c)
    return h, torch.cat((h, c), dim=-2)


def coupled(x: Tensor, state: Tensor, weights: CellWeights) -> tuple[Tensor, Tensor]:
    """LSTM whose input gate is `1 - f` (CIFG, Greff et al. 2017). Gate order f, o, g."""
    h, c = state.chunk(2, dim=-2)
    pre_f, pre_o, pre_g = _gates(x, h, weights).chunk(3, dim=-2)
    f = torch.sigmoid(pre_f)
    c = f * c + (1 - f) * _tanh(pre_g)
    h = torch.sigmoid(pre_o) * _tanh(c)
    return h, torch.cat((h, c), dim=-2)


def gru(x: Tensor, state: Tensor, weights: CellWeights) -> tuple[Tensor, Tensor]:
    """GRU with the reset gate after the product (Cho et al. 2014); equals torch.nn.GRUCell.

    Gate order r, z, n; `b_hn` is the bias inside the reset product.
    """
    h = state
    from_input = affine(weights["w_ih"], x, weights["b"]).chunk(3, dim=-2)
    from_hidden = torch.matmul(weights["w_hh"], h).chunk(3, dim=-2)
    r = torch.sigmoid(from_input[0] + from_hidden[0])
    z = torch.sigmoid(from_input[1] + from_hidden[1])
    n = _tanh(from_input[2] + r * (from_hidden[2] + _column(weights["b_hn"])))
    h = n + z * (h - n)
    return h, h


CELLS: dict[str, Cell] = {
    "rnn": Cell(rnn, gates=1, state_vectors=1),
    "lstm": Cell(lstm, gates=4, state_vectors=2, forget_gate=1),
    "peephole": Cell(peephole, gates=4, state_vectors=2, forget_gate=1, extra={"peep": 3}),
    "coupled": Cell(coupled, gates=3, state_vectors=2, forget_gate=0),
    "gru": Cell(gru, gates=3, state_vectors=1, extra={"b_hn": 1}),
}
