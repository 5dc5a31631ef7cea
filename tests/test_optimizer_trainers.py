"""The trainers that people use, where they are installed, and torch's checkpoint interface."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import (
    assert_near,
    data,
    fit,
    frozen_state,
    loss_of,
    make,
    mlp,
    same,
    same_tree,
    snapshot,
    through_file,
)
from torch import Tensor, nn
from torch.optim import lr_scheduler


def dataset() -> torch.utils.data.TensorDataset:
    inputs, outputs = zip(*data(8), strict=True)
    return torch.utils.data.TensorDataset(torch.cat(inputs), torch.cat(outputs))


@pytest.mark.filterwarnings("ignore")
def test_accelerate_trains_saves_and_loads(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = mlp()
    optimizer = make(model.parameters())
    before = snapshot(model)
    loader = torch.utils.data.DataLoader(dataset(), batch_size=16)
    wrapped, driver, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(loss_of(wrapped, batch))
            accelerator.clip_grad_norm_(wrapped.parameters(), 10.0)
            driver.step()
            driver.zero_grad()
    assert not same(model, before)
    state, before = frozen_state(optimizer), snapshot(model)
    accelerator.save_state(str(tmp_path))
    fit(model, optimizer, data(2))
    accelerator.load_state(str(tmp_path))
    assert same(model, before)
    assert same_tree(state["state"], optimizer.state_dict()["state"])


@pytest.mark.filterwarnings("ignore")
def test_hf_trainer_trains_and_resumes(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.net, (x, labels)), "logits": self.net(x)}

    examples = [{"x": x, "labels": y} for x, y in dataset()]

    def run(resume: str | None = None) -> list[Tensor]:
        model = Model()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=4,
            save_steps=2,
            save_strategy="steps",
            per_device_train_batch_size=16,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=examples, optimizers=(make(model.parameters()), None)
        )
        trainer.train(resume_from_checkpoint=resume)
        return snapshot(model)

    whole = run()
    assert not same(whole, mlp())
    assert_near(run(str(tmp_path / "checkpoint-2")), whole, 1e-7)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_and_resumes(tmp_path: Path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return loss_of(self.net, batch)

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = make(self.parameters())
            return {
                "optimizer": optimizer,
                "lr_scheduler": lr_scheduler.ExponentialLR(optimizer, 0.9),
            }

    def trainer(steps: int) -> Any:
        return lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=10.0,
        )

    # One batch an epoch: Lightning resumes where an epoch ends.
    batch = data(1)[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=16)
    first, resumed, whole = Module(), Module(), Module()
    short = trainer(2)
    short.fit(first, loader)
    short.save_checkpoint(tmp_path / "x.ckpt")
    trainer(4).fit(resumed, loader, ckpt_path=tmp_path / "x.ckpt")
    trainer(4).fit(whole, loader)
    assert not same(whole, mlp())
    assert_near(resumed, whole, 1e-7)


def test_distributed_checkpoints_of_one_process_resume_bit_for_bit():
    from torch.distributed.checkpoint import state_dict as dcp

    for flat in (False, True):
        options = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
        model = mlp()
        optimizer, before = make(model.parameters()), snapshot(model)
        dcp.get_optimizer_state_dict(model, optimizer, options=options)
        assert same(model, before), "a step with a rate of zero moved something"
        fit(model, optimizer, data(3))
        saved = copy.deepcopy(dcp.get_optimizer_state_dict(model, optimizer, options=options))
        saved = through_file(saved)
        twin = copy.deepcopy(model)
        other = make(twin.parameters())
        dcp.set_optimizer_state_dict(twin, other, saved, options=options)
        fit(model, optimizer, data(2, seed=6))
        fit(twin, other, data(2, seed=6))
        assert same(model, twin)
