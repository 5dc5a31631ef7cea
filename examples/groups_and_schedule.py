"""Decay for the weights but not for biases, a warm-up, and a slower group for the first layer.

`lr` is a factor on the learned step, 1 by default, so every scheduler works: it scales what the
rule decides. `weight_decay` is decoupled, and values that suit AdamW mean the same here.

    python examples/groups_and_schedule.py
"""

from __future__ import annotations

import digits
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from learned_optim import LearnedOptimizer


def main() -> None:
    """Train with three groups and a warm-up."""
    total = digits.steps(__doc__, 300)
    data = digits.load()
    torch.manual_seed(0)
    model = digits.network()
    first, last = model[0], model[2]
    optimizer = LearnedOptimizer(
        [
            {"params": [first.weight], "weight_decay": 0.01, "lr": 0.5},
            {"params": [last.weight], "weight_decay": 0.01},
            {"params": [first.bias, last.bias]},
        ],
        total_steps=total,
    )
    warm_up = max(1, total // 20)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm_up))
    for x, y in digits.minibatches(data, total):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    rates = ", ".join(f"{rate:.2f}" for rate in schedule.get_last_lr())
    print(f"factors on the step at the end: {rates}")
    print(f"test accuracy {digits.accuracy(model, data):.1%}")


if __name__ == "__main__":
    main()
