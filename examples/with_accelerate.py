"""Accelerate: gradient accumulation, clipping, and a saved and restored state.

pip install accelerate
python examples/with_accelerate.py
"""

from __future__ import annotations

import tempfile

import digits
import torch
from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
from torch.nn import functional

from learned_optim import LearnedOptimizer

ACCUMULATED = 2


def main() -> None:
    """Train, save, load, and go on."""
    total = digits.steps(__doc__, 300)
    data = digits.load()
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    network = digits.network()
    model, optimizer = accelerator.prepare(
        network, LearnedOptimizer(network.parameters(), total_steps=total)
    )
    for x, y in digits.minibatches(data, total * ACCUMULATED):
        with accelerator.accumulate(model):
            accelerator.backward(functional.cross_entropy(model(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    reached = digits.accuracy(model, data)
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        accelerator.load_state(folder)
    print(f"test accuracy {reached:.1%}, after loading {digits.accuracy(model, data):.1%}")


if __name__ == "__main__":
    main()
