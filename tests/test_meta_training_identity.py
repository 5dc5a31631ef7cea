"""A checkpoint is resumed under the recipe that made it, and under no other."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import loaded, through_file

from learned_optim import meta_training
from learned_optim.meta_training import checkpoint
from learned_optim.meta_training.checkpoint import CheckpointError
from learned_optim.meta_training.identity import difference
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.rules import L2L
from learned_optim.weights import digest, save_folder

TABLE: dict[str, Any] = {
    "name": "a",
    "seed": 3,
    "rule": {"name": "l2l", "hidden": 3, "layers": 1},
    "tasks": [{"family": "quadratic", "dim": 4}, {"family": "rosenbrock", "runs": 2}],
    "estimator": {"name": "tbptt", "unroll": 4, "only": ["head."]},
    "horizon": {"name": "constant", "steps": 8},
    "outer": {"steps": 4, "lr": 1, "clip": 0.1},
    "validation": {"runs": 2, "steps": 4, "lengths": [1, 2]},
}


def changed(**tables: Any) -> dict[str, Any]:
    """`TABLE` with other keys, those of its tables one by one."""
    new = copy.deepcopy(TABLE)
    for key, value in tables.items():
        new[key] = {**new.get(key, {}), **value} if isinstance(value, dict) else value
    return new


@pytest.fixture(scope="module")
def state():
    """After a step, as it is read from a file."""
    trainer = MetaTrainer(parse_recipe(TABLE))
    trainer.step()
    return through_file(trainer.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 3 in the checkpoint and 4 in the recipe"),
        (
            {"tasks": [{"family": "quadratic", "dim": 4}, {"family": "rosenbrock", "runs": 3}]},
            r"tasks\[1\]\.runs is 2 in the checkpoint and 3 in the recipe",
        ),
        (
            {"tasks": [{"family": "quadratic", "dim": 5}, {"family": "rosenbrock", "runs": 2}]},
            r"tasks\[0\]\.family\.dim is 4 in the checkpoint and 5 in the recipe",
        ),
        ({"tasks": TABLE["tasks"][::-1]}, r"tasks\[0\]\.family\.name is 'quadratic' .* 'rosenbr"),
        ({"tasks": TABLE["tasks"][:1]}, r"tasks\[1\] is .*'rosenbrock'.* and None in the recipe"),
        ({"rule": {"scale": 0.2}}, r"rule\.scale is 0\.1 in the checkpoint and 0\.2 in the recipe"),
        ({"estimator": {"name": "es"}}, r"estimator\.name is 'tbptt' in .* and 'es' in the recipe"),
        ({"estimator": {"unroll": 5}}, r"estimator\.unroll is 4 in .* and 5 in the recipe"),
        ({"estimator": {"only": []}}, r"estimator\.only is \['head\.'\] in .* and \[\] in the"),
        ({"outer": {"lr": 0.5}}, r"outer\.lr is 1 in the checkpoint and 0\.5 in the recipe"),
        ({"outer": {"final_lr": 0.5}}, r"outer\.final_lr is 1\.0 in .* and 0\.5 in the recipe"),
        ({"validation": {"every": 7}}, r"validation\.every is 100 in .* and 7 in the recipe"),
        ({"validation": {"lengths": [1]}}, r"validation\.lengths is \[1\.0, 2\.0\] in .* \[1\.0\]"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_another_recipe_is_refused_and_told_by_its_first_difference(state, change, message):
    trainer = MetaTrainer(parse_recipe(changed(**change)))
    with pytest.raises(CheckpointError, match=f"another recipe: {message}.*another --output"):
        trainer.load_state_dict(state)
    assert trainer.step_count == 0


def test_what_may_change_as_a_run_goes_on_is_let_through(state):
    change = {"name": "b", "checkpoint_minutes": 9.0, "outer": {"steps": 9, "lr": 1.0}}
    trainer = MetaTrainer(parse_recipe(changed(**change)))
    trainer.load_state_dict(state)
    trainer.step()
    assert trainer.step_count == 2


@pytest.mark.parametrize("old", [False, True], ids=["now", "before the field was there"])
def test_a_field_that_came_later_is_compared_too(state, old):
    saved = copy.deepcopy(state)
    if old:
        del saved["recipe"]["rule"]["state"]
    MetaTrainer(parse_recipe(TABLE)).load_state_dict(saved)
    half = MetaTrainer(parse_recipe(changed(rule={"state": "float16"})))
    with pytest.raises(CheckpointError, match=r"rule\.state is 'float32' in .* and 'float16' in"):
        half.load_state_dict(saved)
    with pytest.raises(CheckpointError, match=r"rule\.state is 'float16' in .* and 'float32' in"):
        MetaTrainer(parse_recipe(TABLE)).load_state_dict(half.state_dict())


def test_the_number_of_steps_is_part_of_a_recipe_whose_rate_falls_towards_the_last():
    falling = [changed(outer={"steps": steps, "final_lr": 0.1}) for steps in (4, 5)]
    one, other = (MetaTrainer(parse_recipe(table)) for table in falling)
    with pytest.raises(CheckpointError, match=r"outer\.steps is 4 in the checkpoint and 5"):
        other.load_state_dict(one.state_dict())


def test_a_checkpoint_beyond_the_last_step_is_refused(state):
    trainer = MetaTrainer(parse_recipe(changed(outer={"steps": 1})))
    trainer.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"outer\.steps is 1 .* but 2 steps have been made"):
        trainer.load_state_dict({**state, "step": 2})


def test_a_checkpoint_from_before_recipes_were_kept_is_let_through(state):
    old = {key: value for key, value in state.items() if key != "recipe"}
    trainer = MetaTrainer(parse_recipe(changed(seed=4)))
    trainer.load_state_dict(old)
    assert trainer.step_count == 1
    assert trainer.state_dict()["recipe"]["seed"] == 4


def test_a_key_that_the_library_has_gained_since_is_passed_over():
    saved = {"name": "l2l", "hidden": 3}
    assert difference(saved, {**saved, "gained": 1}) == ""


def test_the_identity_of_a_shipped_recipe_survives_a_file():
    root = Path(__file__).resolve().parent.parent / "pretrained"
    for path in root.rglob("recipe.toml"):
        trainer = MetaTrainer(meta_training.read_recipe(path))
        kept = trainer._identity()
        assert through_file(kept) == kept
        assert difference(through_file(kept), kept) == ""


def write(folder: Path, lines: str) -> Path:
    """A recipe of two steps that starts from, or learns from, weights beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    tables = (
        '[rule]\nname = "l2l"\nhidden = 3\nlayers = 1\n[[tasks]]\nfamily = "quadratic"\ndim = 3\n'
    )
    short = '[horizon]\nname = "constant"\nsteps = 4\n[outer]\nsteps = 2\n'
    validation = "[validation]\nruns = 2\nsteps = 2\n"
    path.write_text(lines.format(first='name = "x"\n', rest=tables + short + validation))
    return path


def beginnings(folder: Path) -> None:
    """Two folders of weights."""
    for seed, name in enumerate(("one", "two")):
        made = loaded(L2L(hidden=3, layers=1), seed=seed)
        save_folder(folder / name, made.rule, dict(made.weights), name=name)


START = '{{first}}start = "{0}"\n{{rest}}'
LEARNED = '{{first}}{{rest}}[imitation]\nweight = 1.0\nlearned = "{0}"\n'


@pytest.mark.parametrize("lines", [START, LEARNED], ids=["start", "learned"])
def test_folders_are_told_by_the_weights_in_them(tmp_path, lines):
    beginnings(tmp_path)
    out = tmp_path / "out"

    def go_on(folder: str, *, resume: bool = True) -> None:
        path = write(tmp_path, lines.format(folder))
        meta_training.run(path, output=out, resume=resume, progress=False)

    go_on("one", resume=False)
    go_on("./two/../one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    go_on("copy")
    with pytest.raises(CheckpointError, match=r"(start|imitation\.learned) is 'weights of sha256"):
        go_on("two")
    shutil.copytree(tmp_path / "two", tmp_path / "one", dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="another recipe"):
        go_on("one")


def test_an_old_checkpoint_that_started_from_weights_goes_on_twice(tmp_path):
    beginnings(tmp_path)
    path, out = write(tmp_path, START.format("one")), tmp_path / "out"
    meta_training.run(path, output=out, progress=False)
    state = checkpoint.load(out / "checkpoint.pt")
    whole = state["weights"]
    del state["recipe"]
    checkpoint.save(out / "checkpoint.pt", state)
    for _ in range(2):
        meta_training.run(path, output=out, resume=True, progress=False)
    again = checkpoint.load(out / "checkpoint.pt")
    assert all(torch.equal(again["weights"][key], value) for key, value in whole.items())
    first = dict(loaded(L2L(hidden=3, layers=1)).weights)
    assert again["recipe"]["start"] == f"weights of sha256 {digest(first)}"


def test_a_digest_is_the_hash_of_the_file(tmp_path):
    made = loaded(L2L(hidden=3, layers=1))
    assert digest(dict(made.weights)) == made.sha256
