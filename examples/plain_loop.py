"""A plain training loop: what changes is the line that makes the optimizer.

python examples/plain_loop.py
"""

from __future__ import annotations

import digits
import torch
from torch.nn import functional

from learned_optim import LearnedOptimizer


def main() -> None:
    """Train, and print loss and accuracy on the way."""
    total = digits.steps(__doc__, 300)
    data = digits.load()
    torch.manual_seed(0)
    model = digits.network()
    optimizer = LearnedOptimizer(model.parameters(), total_steps=total)
    for step, (x, y) in enumerate(digits.minibatches(data, total), start=1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == total:
            print(f"step {step}: loss {loss.item():.4f}")
    print(f"test accuracy {digits.accuracy(model, data):.1%}")


if __name__ == "__main__":
    main()
