"""The plain PyTorch way to meta-train: the loop that public implementations of the paper share.

`torch.nn.LSTMCell` over all coordinates of the optimizee at once, autograd through the whole
unrolled window, one run after another. Same rule, same task, same minibatches as
`learned_optim.meta_training`, so that its losses and meta-gradients can be compared number by
number, and only then its speed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learned_optim.features import log_sign, raw
from learned_optim.rules import L2L, Weights
from learned_optim.tasks import Batch, Params, Task

CellState = list[tuple[Tensor, Tensor]]


def _torch_order(gates: Tensor) -> Tensor:
    """Gate blocks i, f, o, g -> torch's i, f, g, o; its own inverse."""
    i, f, o, g = gates.chunk(4)
    return torch.cat((i, f, g, o))


class EagerRule(nn.Module):
    """The paper's rule on `torch.nn.LSTMCell`.

    Args:
        rule: its config; the cell must be "lstm".
        weights: its meta-parameters, copied.
    """

    def __init__(self, rule: L2L, weights: Weights) -> None:
        super().__init__()
        self.rule = rule
        self.cells = nn.ModuleList(
            nn.LSTMCell(rule.inputs if layer == 0 else rule.hidden, rule.hidden)
            for layer in range(rule.layers)
        )
        self.head = nn.Linear(rule.hidden, 1)
        self.load_state_dict(self._named(weights))

    def _named(self, weights: Weights) -> dict[str, Tensor]:
        named = {"head.weight": weights["head.w"], "head.bias": weights["head.b"]}
        for layer in range(self.rule.layers):
            prefix, theirs = f"cells.{layer}", f"cell.{layer}"
            named[f"{prefix}.weight_ih"] = _torch_order(weights[f"{theirs}.w_ih"])
            named[f"{prefix}.weight_hh"] = _torch_order(weights[f"{theirs}.w_hh"])
            named[f"{prefix}.bias_ih"] = _torch_order(weights[f"{theirs}.b"])
            named[f"{prefix}.bias_hh"] = torch.zeros_like(weights[f"{theirs}.b"])
        return named

    def gradients(self) -> Weights:
        """What `backward` left, under the rule's own names and in its own order of gates."""
        grads = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in self._pairs()}
        found = {"head.w": grads["head.weight"], "head.b": grads["head.bias"]}
        for layer in range(self.rule.layers):
            for ours, name in (("w_ih", "weight_ih"), ("w_hh", "weight_hh"), ("b", "bias_ih")):
                found[f"cell.{layer}.{ours}"] = _torch_order(grads[f"cells.{layer}.{name}"])
        return {key: found[key] for key in self.rule.weight_shapes()}

    def _pairs(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())

    def start(self, coordinates: int) -> CellState:
        """Zeros: `(N, H)` hidden and cell state of each layer."""
        zeros = torch.zeros(coordinates, self.rule.hidden)
        return [(zeros, zeros) for _ in self.cells]

    def forward(self, grad: Tensor, state: CellState) -> tuple[Tensor, CellState]:
        """Gradients `(N,)` -> steps `(N,)`."""
        seen = log_sign(grad, self.rule.p) if self.rule.preprocess == "log_sign" else raw(grad)
        x, new = seen.mT, []
        for cell, before in zip(self.cells, state, strict=True):
            after = cell(x, before)
            new.append(after)
            x = after[0]
        return self.rule.scale * self.head(x).squeeze(-1), new


class EagerRun:
    """One optimizee in training by an `EagerRule`, window after window.

    Args:
        rule: the rule.
        task: the optimizee.
        seed: of its start and its minibatches.
    """

    def __init__(self, rule: EagerRule, task: Task, seed: int) -> None:
        self.rule, self.task = rule, task
        self.generator = torch.Generator().manual_seed(seed)
        self.params, self.constants = task.init(self.generator)
        self.batch = self._next_batch()
        self.state = rule.start(sum(value.numel() for value in self.params.values()))

    def _next_batch(self) -> Batch:
        return self.constants | self.task.batch(self.generator)

    def backpropagate(self, steps: int, *, second_derivatives: bool = False) -> list[float]:
        """Backpropagation through a window into the rule's `.grad`; the losses after each step."""
        self.rule.zero_grad()
        params = {key: value.detach().requires_grad_() for key, value in self.params.items()}
        state = [(h.detach(), c.detach()) for h, c in self.state]
        loss, losses = self.task.loss(params, self.batch), []
        for _ in range(steps):
            grads = torch.autograd.grad(
                loss, list(params.values()), create_graph=second_derivatives, retain_graph=True
            )
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            step, state = self.rule(flat if second_derivatives else flat.detach(), state)
            params = _moved(params, step)
            self.batch = self._next_batch()
            loss = self.task.loss(params, self.batch)
            losses.append(loss)
        torch.stack(losses).sum().backward()
        self.params, self.state = params, state
        return [float(loss.detach()) for loss in losses]

    def run(self, steps: int) -> list[float]:
        """The same window without a graph over the rule: what evolution strategies need."""
        losses = []
        loss, grads = self._evaluate()
        for _ in range(steps):
            with torch.no_grad():
                step, self.state = self.rule(grads, self.state)
                self.params = _moved(self.params, step)
            self.batch = self._next_batch()
            loss, grads = self._evaluate()
            losses.append(loss)
        return losses

    def _evaluate(self) -> tuple[float, Tensor]:
        params = {key: value.detach().requires_grad_() for key, value in self.params.items()}
        loss = self.task.loss(params, self.batch)
        grads = torch.autograd.grad(loss, list(params.values()))
        return float(loss.detach()), torch.cat([grad.reshape(-1) for grad in grads])


def _moved(params: Params, step: Tensor) -> Params:
    parts = step.split([value.numel() for value in params.values()])
    return {
        key: value + part.view_as(value)
        for (key, value), part in zip(params.items(), parts, strict=True)
    }
