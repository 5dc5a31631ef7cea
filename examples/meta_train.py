"""Learn a rule of your own, and train with it.

The recipe below says everything: a small LSTM, networks on the digits to learn from, truncated
backpropagation through their training. Two minutes would give a better rule, an hour a good one;
this is long enough to see that it learned something.

    python examples/meta_train.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import digits
import torch
from torch.nn import functional

from learned_optim import LearnedOptimizer, LoadedRule
from learned_optim.meta_training import run

RECIPE = """
name = "mine"

[rule]
name = "l2l"
layers = 1
hidden = 8

[[tasks]]
family = "mlp_classification"
dataset = "digits"
depth = 1
width = 16
activation = ["relu", "tanh"]
layer_norm = false
gain = 1.0
batch_size = 64
objective = "cross_entropy"
runs = 4

[estimator]
name = "tbptt"
unroll = 20

[horizon]
name = "constant"
steps = 100

[outer]
steps = {outer}
lr = 0.01
final_lr = 0.1
clip = 10.0

[validation]
every = {every}
runs = 4
steps = 100
"""


def train(rule: LoadedRule | str, steps: int) -> float:
    """Train a network that is larger than those the rule learned from; the test accuracy."""
    data = digits.load()
    torch.manual_seed(0)
    model = digits.network()
    optimizer = LearnedOptimizer(model.parameters(), rule)
    for x, y in digits.minibatches(data, steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return digits.accuracy(model, data)


def main() -> None:
    """Meta-train into a folder, then use the rule from there, by its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outer-steps", type=int, default=100, help="meta-training (100)")
    parser.add_argument("--steps", type=int, default=100, help="training with the rule (100)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = max(1, arguments.outer_steps // 4)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(outer=arguments.outer_steps, every=every))
        learned = run(recipe, output=folder / "run", progress=False)
        print(f"{learned.name}: {sorted(path.name for path in (folder / 'run').iterdir())}")
        print(f"test accuracy with it {train(str(folder / 'run'), arguments.steps):.1%}")


if __name__ == "__main__":
    main()
