"""Lightning: return the optimizer from `configure_optimizers`, as any other.

pip install lightning
python examples/with_lightning.py
"""

from __future__ import annotations

import digits
import lightning  # pyright: ignore[reportMissingImports]
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from learned_optim import LearnedOptimizer


class Module(lightning.LightningModule):
    """A network for the digits."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.network = digits.network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.network(x)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Cross entropy of a minibatch."""
        x, y = batch
        return functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """No rate to choose; the horizon is known."""
        return LearnedOptimizer(self.parameters(), total_steps=self.steps)


def main() -> None:
    """Fit and evaluate."""
    total = digits.steps(__doc__, 300)
    data = digits.load()
    torch.manual_seed(0)
    module = Module(total)
    loader = DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=64, shuffle=True)
    trainer = lightning.Trainer(
        max_steps=total,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    print(f"test accuracy {digits.accuracy(module, data):.1%}")


if __name__ == "__main__":
    main()
