"""Meta-training away from the CPU: placement of every tensor, and equality where there is CUDA.

Without a GPU the placement is checked on torch's meta device, whose tensors have no numbers: a mode
that sees every operator refuses one that mixes devices, as CUDA would, and answers with 1 where the
host asks for a number.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learned_optim import kernels, meta_training
from learned_optim.meta_training import parallel
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.weights import load_folder

aten = torch.ops.aten
ESTIMATORS = {
    "tbptt": {"name": "tbptt", "unroll": 3},
    "second": {"name": "tbptt", "unroll": 3, "second_derivatives": True},
    "es": {"name": "es"},
    "pes": {"name": "pes", "unroll": 3},
    "nres": {"name": "nres", "unroll": 3},
}
RULES = {
    "l2l": {"name": "l2l", "layers": 1, "hidden": 3},
    "default": {"name": "default"},
    "adam": {"name": "adam"},
}


class Placement(TorchDispatchMode):
    """Refuses operators over tensors of several devices; 0-dimensional ones may be anywhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if func is aten._local_scalar_dense.default and tensors[0].is_meta:
            return torch.ones((), dtype=tensors[0].dtype).item()
        if func is aten._to_copy.default and tensors[0].is_meta:
            return torch.ones_like(tensors[0], **{"device": "meta", **kwargs})
        devices = {x.device.type for x in tensors if x.dim() > 0}
        if len(devices) > 1 and func not in (aten.copy_.default, aten._to_copy.default):
            raise AssertionError(f"{func} mixes the devices {sorted(devices)}")
        return func(*args, **kwargs)


def table(rule: str, estimator: str) -> dict[str, Any]:
    """Every option that touches a tensor."""
    task = {"family": "mnist_mlp", "dataset": "digits", "hidden": 4, "batch_size": 8, "runs": 2}
    return {
        "name": "x",
        "rule": RULES[rule],
        "tasks": [task, {"family": "quadratic", "augment": [{"name": "reparametrise"}]}],
        "estimator": ESTIMATORS[estimator],
        "horizon": {"name": "constant", "steps": 6},
        "validation": {"runs": 2, "steps": 3, "score": "log_adam"},
        "normalise": {"by": "adam", "pool": 2},
        "imitation": {"weight": 1.0},
        "outer": {"clip": 1.0, "ema": 0.5, "lr": 0.01},
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rule", RULES)
def test_no_operator_mixes_devices(rule, estimator, monkeypatch):
    trainer = MetaTrainer(parse_recipe(table(rule, estimator)), "meta")
    with Placement():
        trainer.step()
        trainer.step()
        state = trainer.state_dict()
        trainer.validate()
        twin = MetaTrainer(parse_recipe(table(rule, estimator)), "meta")
        twin.load_state_dict(state)
        twin.step()
    for worker in (*trainer.workers, *twin.workers):
        assert worker.carry is not None
        assert worker.carry.theta.is_meta
        assert all(value.is_meta for value in worker.carry.state.values())
    for tensor in tree_leaves(state):
        assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu"
    moments = [v for s in twin.optimizer.state.values() for v in s.values() if v.dim()]
    for value in (*twin.weights.values(), *twin.averaged.values(), *moments):
        assert value.is_meta


def test_the_check_of_placement_can_fail():
    with Placement(), pytest.raises(AssertionError, match="mixes the devices"):
        torch.add(torch.ones(3, device="meta"), torch.ones(3))


def test_a_device_that_is_not_here_is_a_clear_error(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "x"\n[rule]\nname = "adam"\n[[tasks]]\nfamily = "quadratic"\n')
    for wrong in ("cuda:99", "gpu", "meta"):
        with pytest.raises(parallel.DeviceUnavailable, match=f"'{wrong}' can not be used"):
            meta_training.run(recipe, output=tmp_path / "out", progress=False, device=wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rule", RULES)
def test_cuda_takes_the_steps_of_the_cpu(rule, estimator, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda: False)
    trainers = [MetaTrainer(parse_recipe(table(rule, estimator)), d) for d in ("cpu", "cuda")]
    for _ in range(3):
        cpu, cuda = (trainer.step() for trainer in trainers)
        for one, other in zip(cpu, cuda, strict=True):
            assert other.estimate.meta_loss == pytest.approx(one.estimate.meta_loss, rel=1e-2)
    for key, value in trainers[0].weights.items():
        torch.testing.assert_close(
            trainers[1].weights[key].cpu(), value, rtol=0.05, atol=5e-3, check_device=False
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_cuda_goes_on_on_the_cpu(tmp_path):
    text = (
        'name = "x"\ncheckpoint_minutes = 0.0\n[rule]\nname = "l2l"\nhidden = 3\n[[tasks]]\n'
        'family = "quadratic"\n[outer]\nsteps = {steps}\n[validation]\nruns = 2\nsteps = 5\n'
    )
    recipe = tmp_path / "r.toml"
    for steps, device in ((4, "cuda"), (6, "cpu"), (8, "cuda")):
        recipe.write_text(text.format(steps=steps))
        meta_training.run(
            recipe, output=tmp_path / "out", resume=steps > 4, progress=False, device=device
        )
    assert load_folder(tmp_path / "out").weights["head.w"].device.type == "cpu"
