"""Going on with a network that was trained before: a new head and sixty labelled examples.

It knows the digits below seven and learns all ten. `default` is used as it is, told how many steps
there will be. Where the data hardly change, `lr=0.3` keeps more of what was learned.

    python examples/fine_tune.py
"""

from __future__ import annotations

import digits
import torch
from torch import nn
from torch.nn import functional

from learned_optim import LearnedOptimizer

KNOWN, FEW = 7, 60


def fit(model: nn.Module, data: digits.Digits, steps: int) -> None:
    """Train all parameters."""
    optimizer = LearnedOptimizer(model.parameters(), total_steps=steps)
    for x, y in digits.minibatches(data, steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    """Train on some digits, then on few examples of all; and on those alone, for comparison."""
    steps = digits.steps(__doc__, 200)
    data = digits.load()
    known = data.train_y < KNOWN
    before = data._replace(train_x=data.train_x[known], train_y=data.train_y[known])
    few = data._replace(train_x=data.train_x[-FEW:], train_y=data.train_y[-FEW:])
    torch.manual_seed(0)
    model = digits.network()
    fit(model, before, steps)
    print(f"digits below {KNOWN} are known: accuracy {digits.accuracy(model, data):.1%}")
    model[2] = nn.Linear(64, 10)
    fit(model, few, steps)
    print(f"a new head and {FEW} examples: accuracy {digits.accuracy(model, data):.1%}")
    torch.manual_seed(0)
    other = digits.network()
    fit(other, few, steps)
    print(f"these {FEW} examples alone: accuracy {digits.accuracy(other, data):.1%}")


if __name__ == "__main__":
    main()
