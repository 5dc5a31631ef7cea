"""Recipes, validation, checkpoints, kills and resumption of meta-training."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from learned_optim import meta_training
from learned_optim.meta_training import checkpoint
from learned_optim.meta_training.baseline import tuned_adam
from learned_optim.meta_training.curriculum import Stages
from learned_optim.meta_training.estimators import Estimate, evolution
from learned_optim.meta_training.outer_loop import MetaTrainer, learning_rate
from learned_optim.meta_training.recipe import Curriculum, Outer, RecipeError
from learned_optim.meta_training.recipe_file import parse_recipe, read_recipe
from learned_optim.weights import load_folder

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """
name = "tiny"
seed = 3
stagger = true
checkpoint_minutes = 0.0
[rule]
name = "l2l"
hidden = 4
layers = 1
[[tasks]]
family = "quadratic"
runs = 3
workers = 2
[[tasks]]
family = "mnist_mlp"
dataset = "digits"
hidden = 4
batch_size = 8
weight = 0.5
[estimator]
name = "tbptt"
unroll = 4
[horizon]
name = "log_uniform"
low = 5
high = 15
[outer]
steps = {steps}
lr = 0.01
warmup = 3
final_lr = 0.1
clip = 1.0
ema = 0.9
[curriculum]
factors = [1, 2]
patience = 1
[validation]
every = 4
runs = 4
steps = 10
lengths = [1, 2]
"""


# A rule and an estimator that may not go together.
TRAINED_BY = """
name = "x"
[rule]
name = "{rule}"
[[tasks]]
family = "quadratic"
[estimator]
name = "{estimator}"
{option}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(steps=12))
    return path


def leaves(tree: Any, path: str = "") -> dict[str, object]:
    """Every leaf of a checkpoint but the wall-clock, tensors as (dtype, shape, bytes)."""
    if isinstance(tree, torch.Tensor):
        return {path: (tree.dtype, tree.shape, tree.numpy().tobytes())}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found: dict[str, object] = {}
    for key, value in items:
        if isinstance(value, dict | list | tuple | torch.Tensor):
            found |= leaves(value, f"{path}/{key}")
        elif key != "seconds":
            found[f"{path}/{key}"] = value
    return found


def final_state(folder: Path) -> dict[str, object]:
    return leaves(checkpoint.load(folder / "checkpoint.pt"))


def test_a_run_leaves_weights_recipe_metrics_and_events(recipe, tmp_path):
    loaded = meta_training.run(recipe, output=tmp_path / "out", progress=False)
    assert load_folder(tmp_path / "out").sha256 == loaded.sha256
    assert (tmp_path / "out" / "recipe.toml").read_text() == recipe.read_text()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["step"] for row in metrics["validation"]["history"]] == [0, 4, 8, 12]
    assert metrics["validation"]["score"] == min(
        row["score"] for row in metrics["validation"]["history"]
    )
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "mnist_mlp_1@20/value" in metrics["validation"]["history"][0]


def test_the_same_recipe_gives_the_same_bytes(recipe, tmp_path):
    first = meta_training.run(recipe, output=tmp_path / "a", progress=False)
    second = meta_training.run(recipe, output=tmp_path / "b", progress=False)
    assert first.sha256 == second.sha256
    assert final_state(tmp_path / "a") == final_state(tmp_path / "b")


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_resume_from_any_step_is_bit_identical(recipe, tmp_path, stop):
    whole = MetaTrainer(read_recipe(recipe))
    whole.validate()
    part = MetaTrainer(read_recipe(recipe))
    part.validate()
    for _ in range(stop):
        whole.step()
        part.step()
    checkpoint.save(tmp_path / "c.pt", part.state_dict())
    resumed = MetaTrainer(read_recipe(recipe))
    resumed.load_state_dict(checkpoint.load(tmp_path / "c.pt"))
    for _ in range(6):
        whole.step()
        resumed.step()
    assert whole.validate() == resumed.validate()
    for key, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[key]), key


def test_kills_at_any_moment_lose_nothing_that_was_saved(recipe, tmp_path):
    """Two SIGKILLs and one SIGTERM, each resumed, end in the bytes of an unbroken run."""
    recipe.write_text(RECIPE.format(steps=40))
    expected = meta_training.run(recipe, output=tmp_path / "whole", progress=False)
    script = (
        "import sys, torch; torch.set_num_threads(1); from learned_optim import meta_training;"
        "meta_training.run(sys.argv[1], output=sys.argv[2], resume=sys.argv[3] == '1',"
        "progress=False)"
    )
    folder = tmp_path / "killed"
    for blow in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, None):
        resume = (folder / "checkpoint.pt").exists()
        before = (folder / "checkpoint.pt").stat().st_mtime_ns if resume else 0
        process = subprocess.Popen(
            [sys.executable, "-c", script, recipe, folder, str(int(resume))],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        if blow is None:
            assert process.wait(120) == 0
            break
        wait_for_new_checkpoint(folder / "checkpoint.pt", before, process)
        process.send_signal(blow)
        process.wait(60)
    assert load_folder(folder).sha256 == expected.sha256
    assert final_state(folder) == final_state(tmp_path / "whole")


def wait_for_new_checkpoint(path: Path, before: int, process: subprocess.Popen) -> None:
    for _ in range(6000):
        if process.poll() is not None:
            return
        if path.exists() and path.stat().st_mtime_ns > before:
            return
        time.sleep(0.01)
    pytest.fail("no checkpoint appeared")


def test_a_full_disk_is_a_clear_error_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"No space left.*intact"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_in_the_middle_of_a_save_left_is_swept_away_on_resume(recipe, tmp_path):
    folder = tmp_path / "out"
    meta_training.run(recipe, output=folder, progress=False)
    (folder / ".checkpoint.pt.abcdef").write_bytes(b"half")
    meta_training.run(recipe, output=folder, resume=True, progress=False)
    assert not list(folder.glob(".checkpoint.pt.*"))
    assert (folder / "checkpoint.pt").exists()


def test_a_torn_checkpoint_is_a_clear_error(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"weights": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(checkpoint.CheckpointError, match="can not be read"):
        checkpoint.load(path)


def test_starting_over_a_checkpoint_or_resuming_without_one_is_refused(recipe, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="without --resume"):
        meta_training.run(recipe, output=tmp_path / "out", resume=True, progress=False)
    checkpoint.save(tmp_path / "out" / "checkpoint.pt", {})
    with pytest.raises(checkpoint.CheckpointError, match="--resume"):
        meta_training.run(recipe, output=tmp_path / "out", progress=False)


def test_a_checkpoint_of_another_rule_is_refused(recipe):
    trainer = MetaTrainer(read_recipe(recipe))
    other = parse_recipe({"name": "x", "rule": {"name": "l2l"}, "tasks": [{"family": "quadratic"}]})
    state = MetaTrainer(other).state_dict()
    with pytest.raises(
        checkpoint.CheckpointError, match=r"rule\.layers is 2 in the checkpoint and 1"
    ):
        trainer.load_state_dict(state)
    del state["recipe"]  # as before recipes were in checkpoints
    with pytest.raises(checkpoint.CheckpointError, match="another rule"):
        trainer.load_state_dict(state)


def test_meta_training_lowers_the_validation_score():
    recipe = parse_recipe(
        {
            "name": "x",
            "rule": {"name": "l2l", "preprocess": "none", "scale": 1.0},
            "tasks": [{"family": "quadratic", "runs": 32}],
            "horizon": {"name": "constant", "steps": 20},
            "outer": {"steps": 60, "lr": 0.01},
            "validation": {"runs": 64, "steps": 20},
        }
    )
    trainer = MetaTrainer(recipe)
    before = trainer.validate()["score"]
    for _ in range(60):
        trainer.step()
    after = trainer.validate()["score"]
    assert after < 0.5 * before
    assert trainer.best_score == after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('sede = 1\nname = "x"', r"no key 'sede'; did you mean 'seed'"),
        ('name = "x"\n[rule]\nname = "l2"', r"'l2' is unknown; did you mean 'l2l'"),
        ('name = "x"\n[rule]\nname = "l2l"\nhiden = 3', r"did you mean 'hidden'"),
        ('name = "x"\n[rule]\nname = "l2l"\nhidden = 2.5', r"hidden must be of type int"),
        ('name = "x"\n[rule]\nname = "l2l"\nhidden = -1', r"hidden must be in \[1, 256\]"),
        ('name = "x"\n[outer]\noptimizer = "Adamm"', r"optimizer must be a class of torch.optim"),
        ('name = "x"\n[[tasks]]\nruns = 1', r"needs `family`"),
        ('name = "x"', r"missing"),
        ('name = "x"\nouter = 3', r"\[outer\] must be a table but is 3"),
        ('name = "x"\nrule = "l2l"', r"\[rule\] must be a table but is 'l2l'"),
        ('name = "x"\n[tasks]\nfamily = "quadratic"', r"\[tasks\] must be a list of tables"),
        ('name = "x"\n[imitation]\nteacher = "adam"', r"teacher\] must be a table but is 'adam'"),
        ("name = ", r"not valid TOML"),
        (
            'name = "x"\n[horizon]\nname = "constant"\nsteps = 0',
            r"steps must be at least 1 but is 0",
        ),
        ('name = "x"\ntasks = []\n[rule]\nname = "l2l"', r"tasks is empty: name at least one"),
        (
            TRAINED_BY.format(rule="by_layer", estimator="tbptt", option="sample = 9"),
            r"estimator\.sample = 9 is for coordinatewise rules, which by_layer is not: leave",
        ),
        (
            TRAINED_BY.format(rule="l2l", estimator="tbptt", option='only = ["head.", "typo"]'),
            r"estimator\.only has 'typo', .* of l2l begins: correct it .* cell\.0\.w_ih",
        ),
        (
            TRAINED_BY.format(rule="default", estimator="es", option='only = ["hand.log_steps"]'),
            r"estimator\.only has 'hand\.log_steps'",
        ),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(tmp_path, change, message):
    path = tmp_path / "r.toml"
    path.write_text(change)
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_a_missing_recipe_says_so(tmp_path):
    with pytest.raises(RecipeError, match="can not read the recipe"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "pretrained").rglob("recipe.toml")), ids=str)
def test_shipped_recipes_parse(path):
    assert read_recipe(path).name


def run_torchrun(recipe: Path, folder: Path, processes: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", "2"]
    command += ["-m", "learned_optim.meta_training", str(recipe), "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def test_two_processes_train_as_one_does_and_survive_the_death_of_a_worker(recipe, tmp_path):
    """Killed once, restarted by torchrun; equal to one process but for the order of a sum."""
    recipe.write_text(RECIPE.format(steps=24))
    meta_training.run(recipe, output=tmp_path / "one", progress=False)
    folder = tmp_path / "two"
    launcher = run_torchrun(recipe, folder, processes=2)
    wait_for_new_checkpoint(folder / "checkpoint.pt", 0, launcher)
    workers = subprocess.run(
        ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=False
    )
    assert workers.stdout.split(), "the workers were gone before one could be killed"
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, errors.decode()[:6000]
    one, two = (checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert two["step"] == 24
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-3, atol=1e-5)
    steps = [row["step"] for row in two["history"]]
    assert steps == [row["step"] for row in one["history"]]


JOIN = """
from learned_optim.meta_training import parallel
with parallel.group():
    print(parallel.world(), flush=True)
"""


def test_a_restarted_worker_does_not_connect_to_an_address_of_the_attempt_before():
    """The second attempt's rank 1 joins only after rank 0 has looked for it."""
    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )

    def start(attempt: int, rank: int) -> subprocess.Popen:
        environment = os.environ | {
            "TORCHELASTIC_RUN_ID": "x",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(attempt),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        late = "import time; time.sleep(2)" if attempt and rank else ""
        command = [sys.executable, "-c", JOIN.replace("with", f"{late}\nwith", 1)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    for attempt in range(2):
        workers = [start(attempt, rank) for rank in range(2)]
        for worker in workers:
            output, errors = worker.communicate(timeout=120)
            assert output.decode().strip() == "2", errors.decode()[-2000:]


def test_a_stage_of_the_curriculum_ends_when_it_stops_to_improve_and_was_worth_it():
    stages = Stages(Curriculum(factors=(1, 2, 5), patience=2))
    for score, factor in (
        (1.0, 1.0),
        (0.8, 1.0),
        (0.9, 1.0),
        (0.8, 2.0),  # two without improvement
        (0.9, 2.0),
        (0.9, 2.0),
        (0.85, 2.0),  # none of this stage beats 0.8: no further
        (0.9, 2.0),
        (0.7, 2.0),
        (0.9, 2.0),
        (0.9, 5.0),
    ):
        stages.see(score)
        assert stages.factor == factor
    again = Stages(Curriculum(factors=(1, 2, 5), patience=2))
    again.load_state_dict(stages.state_dict())
    assert again.state_dict() == stages.state_dict()


def test_a_resumed_run_is_at_the_stage_of_its_curriculum(recipe):
    trainer, resumed = (MetaTrainer(read_recipe(recipe)) for _ in range(2))
    for score in (1.0, 0.8, 0.8):
        trainer.stages.see(score)
    resumed.load_state_dict(trainer.state_dict())
    assert [worker.growth for worker in resumed.workers] == [2.0] * len(resumed.workers)


def test_the_averaged_weights_are_what_is_validated_and_exported(recipe):
    trainer = MetaTrainer(read_recipe(recipe))
    expected = trainer.snapshot()
    for step in range(4):
        trainer.step()
        keep = min(0.9, (step + 1) / (step + 10))
        for key, value in trainer.snapshot().items():
            expected[key] = torch.lerp(value, expected[key], keep)
    trainer.validate()
    for key, value in expected.items():
        assert torch.equal(trainer.best_weights[key], value)
        assert not torch.equal(value, trainer.weights[key])


def test_of_equal_scores_the_first_is_kept(recipe):
    trainer = MetaTrainer(read_recipe(recipe))
    trainer.validate()
    trainer.step_count += 1
    trainer.validate()
    assert trainer.best_step == 0


def test_a_log_adam_score_of_zero_is_a_tuned_adam():
    """Adam as the rule at the grid's best rate scores 0, at a bad rate far above."""
    scores = []
    for rate in (None, 1e-5):
        table = {
            "name": "x",
            "rule": {"name": "adam"},
            "tasks": [{"family": "quadratic"}],
            "validation": {"runs": 8, "steps": 30, "score": "log_adam"},
        }
        trainer = MetaTrainer(parse_recipe(table))
        task, seeds = trainer.validator._optimizees(0)
        best = tuned_adam(task, seeds, 30, 0.05)[1]
        with torch.no_grad():
            trainer.weights["log_lr"].fill_(math.log(rate or best))
        trainer.averaged = trainer.snapshot()
        scores.append(trainer.validate()["score"])
    assert scores[0] == pytest.approx(0.0, abs=1e-4)
    assert scores[1] > 1.0


def test_clip_each_bounds_what_a_worker_gives_before_the_mean():
    """Two losses of sizes that differ by a million then have an equal say."""
    table = {
        "name": "x",
        "rule": {"name": "l2l", "hidden": 3, "preprocess": "none", "scale": 1.0},
        "tasks": [
            {"family": "quadratic"},
            {"family": "quadratic", "augment": [{"name": "loss_scale", "low": 1e6, "high": 1e6}]},
        ],
    }
    trainers = {}
    for limit in (0.0, 1e-3):
        trainers[limit] = MetaTrainer(parse_recipe(table | {"outer": {"clip_each": limit}}))
        given = trainers[limit].step()
    assert max(one.grad_norm for one in given) > 1000 * min(one.grad_norm for one in given) > 1
    free, bound = (
        torch.cat([value.grad.flatten() for value in trainer.weights.values()])  # type: ignore[union-attr]
        for trainer in trainers.values()
    )
    largest = max(one.grad_norm for one in given)
    assert float(free.norm()) == pytest.approx(largest / 2, rel=1e-2)
    assert 1e-4 < float(bound.norm()) <= 1e-3 * (1 + 1e-5)


@pytest.mark.parametrize(
    "estimator",
    [
        {"name": "tbptt", "unroll": 5},
        {"name": "tbptt", "unroll": 5, "second_derivatives": True},
        {"name": "es", "sigma": 0.1},
        {"name": "pes", "unroll": 5, "sigma": 0.1},
        {"name": "nres", "unroll": 5, "sigma": 0.1},
    ],
    ids=lambda table: " ".join(str(value) for value in table.values()),
)
def test_an_odd_rule_stays_odd_while_it_learns(estimator, monkeypatch):
    table = {
        "name": "x",
        "rule": {"name": "l2l", "hidden": 6, "preprocess": "none", "scale": 1.0},
        "tasks": [{"family": "quadratic", "runs": 4}],
        "estimator": estimator,
        "horizon": {"name": "constant", "steps": 20},
        "outer": {"odd": True, "lr": 0.01},
    }
    trainer = MetaTrainer(parse_recipe(table))
    perturbed = []
    kept = evolution.Evolution._perturb

    def perturb(self, weights, noise):
        perturbed.append(kept(self, weights, noise))
        return perturbed[-1]

    monkeypatch.setattr(evolution.Evolution, "_perturb", perturb)
    before = trainer.snapshot()
    for _ in range(6):
        trainer.step()
    assert bool(perturbed) == (estimator["name"] != "tbptt")
    for weights in (before, trainer.snapshot(), trainer.averaged, *perturbed):
        for key, value in trainer.rule.mirrored(weights).items():
            torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-7)
    assert all(
        not torch.equal(before[key], trainer.weights[key]) for key in before if key[-1] != "b"
    )


def test_a_rule_that_is_to_be_odd_cannot_start_from_one_that_is_not():
    table = {
        "name": "x",
        "rule": {"name": "l2l", "hidden": 6},
        "tasks": [{"family": "quadratic"}],
        "outer": {"odd": True},
    }
    trainer = MetaTrainer(parse_recipe(table))
    trainer.start_from(trainer.snapshot())
    with pytest.raises(RecipeError, match=r"outer\.odd .*'cell\.0\.w_ih' is off by 0\.\d"):
        trainer.start_from(trainer.rule.init_weights(torch.Generator().manual_seed(0)))


def test_a_recipe_may_start_from_weights_beside_it(recipe, tmp_path):
    first = meta_training.run(recipe, output=tmp_path / "first", progress=False)
    table = RECIPE.format(steps=1).replace("seed = 3", 'seed = 3\nstart = "first"')
    (tmp_path / "second.toml").write_text(table.replace("every = 4", "every = 100"))
    meta_training.run(tmp_path / "second.toml", output=tmp_path / "out", progress=False)
    best = checkpoint.load(tmp_path / "out" / "checkpoint.pt")["best"]["weights"]
    for key, value in first.weights.items():
        assert torch.equal(best[key], value)
    (tmp_path / "third.toml").write_text(table.replace("hidden = 4\nlayers", "hidden = 5\nlayers"))
    with pytest.raises(ValueError, match=r"another rule: .* has shape"):
        meta_training.run(tmp_path / "third.toml", output=tmp_path / "third", progress=False)


def test_a_level_that_the_first_weights_lack_stays_as_drawn():
    table = {"name": "x", "tasks": [{"family": "quadratic"}]}
    small = parse_recipe(table | {"rule": {"name": "default", "hidden": 0}})
    large = parse_recipe(table | {"rule": {"name": "default"}, "seed": 1})
    first = MetaTrainer(small).snapshot()
    trainer = MetaTrainer(large)
    drawn = trainer.snapshot()
    trainer.start_from(first)
    assert any(key.startswith("coordinate") for key in drawn)
    for key, value in trainer.weights.items():
        assert torch.equal(value, first.get(key, drawn[key]))
    with pytest.raises(ValueError, match="no such weight"):
        MetaTrainer(small).start_from(drawn)


def test_families_count_by_their_weights_in_the_mean_of_the_workers():
    tasks = [{"family": "quadratic", "weight": weight} for weight in (1.0, 3.0)]
    table = {"name": "x", "rule": {"name": "learnable_sgd"}, "tasks": tasks}
    trainer = MetaTrainer(parse_recipe(table))
    estimates = [
        Estimate({key: torch.full_like(w, size) for key, w in trainer.weights.items()}, 0.0, 1, 1)
        for size in (1.0, 5.0)
    ]
    for mean in trainer._gradient(estimates):
        torch.testing.assert_close(mean, torch.full_like(mean, (1 + 3 * 5) / 4))


def test_outer_rate_warms_up_and_anneals():
    outer = Outer(steps=100, lr=1.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(outer, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], rel=0.03)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
