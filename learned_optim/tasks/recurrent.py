"""Recurrent cells of optimizees."""

from __future__ import annotations

import torch
from torch import Tensor

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
CELLS = tuple(GATES)


def advance(
    cell: str, step: Tensor, recurrent: Tensor, hidden: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One step from the products with the input and with the hidden state, `(B, gates * W)`.

    Returns:
        The hidden state and the memory, `(B, W)` each; the memory is the LSTM's alone.
    """
    if cell == "rnn":
        return torch.tanh(step + recurrent), memory
    if cell == "gru":
        width = hidden.shape[-1]
        gates = torch.sigmoid(step[..., : 2 * width] + recurrent[..., : 2 * width])
        reset, update = gates.chunk(2, dim=-1)
        candidate = torch.tanh(step[..., 2 * width :] + reset * recurrent[..., 2 * width :])
        return candidate + update * (hidden - candidate), memory
    enter, forget, candidate, output = (step + recurrent).chunk(4, dim=-1)
    memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
    return torch.sigmoid(output) * torch.tanh(memory), memory
