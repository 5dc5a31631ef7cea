"""Hugging Face's Trainer: a small vision transformer on the digits.

Two things to know: pass the optimizer as `optimizers=(optimizer, None)`, and ask for a constant
schedule. The Trainer's default decays the learning rate to zero, which here is a factor on the
step; LearnedOptimizer does that itself when it is told `total_steps`.

    pip install transformers accelerate
    python examples/hf_trainer.py
"""

from __future__ import annotations

import tempfile

import digits
import numpy as np
import torch
from transformers import (  # pyright: ignore[reportMissingImports]
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from learned_optim import LearnedOptimizer


def main() -> None:
    """Train and evaluate."""
    total = digits.steps(__doc__, 200)
    data = digits.load()
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=10,  # pyright: ignore[reportCallIssue]
    )
    model = ViTForImageClassification(config)
    optimizer = LearnedOptimizer(model.parameters(), weight_decay=0.01, total_steps=total)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=total,
            per_device_train_batch_size=64,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=100,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=examples(data.train_x, data.train_y),
            eval_dataset=examples(data.test_x, data.test_y),
            compute_metrics=lambda p: {
                "right": float((np.argmax(p.predictions, -1) == p.label_ids).mean())
            },
            optimizers=(optimizer, None),
        )
        trainer.train()
        print(f"test accuracy {trainer.evaluate()['eval_right']:.1%}")


def examples(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """What the model takes."""
    return [
        {"pixel_values": image.view(1, 8, 8), "labels": label}
        for image, label in zip(images, labels, strict=True)
    ]


if __name__ == "__main__":
    main()
