"""The model card says what is in the folder, in a form that the Hub reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from learned_optim.meta_training import run
from learned_optim.meta_training.model_card import render
from learned_optim.publishing import licence
from learned_optim.rules import L2L, RULES
from learned_optim.weights import bundled_folder, bundled_names, load_folder

METRICS = {
    "validation": {"score": 0.234567, "history": [[0, 2.3], [250, 0.4]]},
    "hours": 1.5,
    "note": "a | b",
    "worst": float("inf"),
}


def test_the_hub_reads_the_front_matter():
    text = render("l2l-mnist", L2L(), "recipe.toml", METRICS, datasets=["ylecun/mnist"])
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "learned-optim"
    assert data["datasets"] == ["ylecun/mnist"]
    assert "learned-optimizer" in data["tags"]


def test_metrics_are_flattened_rounded_and_curves_left_out():
    text = render("l2l-mnist", L2L(), "recipe.toml", METRICS)
    assert "| validation.score | 0.2346 |" in text
    assert "| hours | 1.5 |" in text
    assert "| worst | inf |" in text
    assert r"| note | a \| b |" in text
    assert "history" not in text


def test_the_config_the_size_the_recipe_and_the_limits_are_there():
    text = render(
        "l2l-mnist",
        L2L(hidden=20),
        "pretrained/l2l-mnist/recipe.toml",
        {},
        limits=["ReLU networks: the loss does not go down."],
    )
    # Two LSTM layers of 20 on 2 features, and the head.
    assert f"({4 * 20 * (2 + 20 + 1) + 4 * 20 * (20 + 20 + 1) + 21:,} numbers)" in text
    assert "| hidden | 20 |" in text
    assert "learned-optim meta-train pretrained/l2l-mnist/recipe.toml" in text
    assert "- ReLU networks: the loss does not go down." in text
    assert 'rule="l2l-mnist"' in text


@pytest.mark.parametrize("name", bundled_names())
def test_the_bundled_cards_say_what_their_files_have(name: str):
    folder = bundled_folder(name)
    text = (folder / "README.md").read_text(encoding="utf-8")
    weights = load_folder(folder).weights
    assert f"({sum(w.numel() for w in weights.values()):,} numbers)" in text
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for key, value in metrics.get("validation", {}).items():
        if key != "history":
            assert f"| validation.{key} | {value:.4g} |" in text
    assert f"| outer_steps | {metrics.get('meta_training', metrics)['outer_steps']} |" in text


def test_every_recipe_says_how_to_run_it_in_a_folder_of_its_own():
    root = Path(__file__).parent.parent
    outputs = []
    for path in sorted((root / "pretrained").rglob("recipe.toml")):
        text = path.read_text(encoding="utf-8")
        said = re.search(
            r"# Rebuild: learned-optim meta-train (\S+)( \\\n# +--output (\S+))?\n", text
        )
        assert said is not None, path
        assert root / said[1] == path
        name = re.search(r'^name = "(.+)"$', text, re.MULTILINE)
        assert name is not None, path
        outputs.append(said[3] or f"runs/{name[1]}")
    assert len(set(outputs)) == len(outputs) > 20


def test_limits_that_nobody_measured_are_not_made_up():
    assert "Not stated." in render("new", L2L(), "recipe.toml", {})


def test_a_published_rule_is_loaded_from_where_it_is():
    text = render("l2l-mnist", L2L(), "recipe.toml", {}, source="user/l2l-mnist@v1")
    assert 'rule="user/l2l-mnist@v1"' in text


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_every_rule_has_a_card(rule):
    text = render("any", rule(), "recipe.toml", {})
    assert f"`{rule.name}`" in text
    assert "{" not in text


@pytest.mark.parametrize("bad", ["", "two\nlines", 'a"quote'])
def test_a_name_that_would_break_the_card_is_refused(bad: str):
    with pytest.raises(ValueError, match="name must be one line"):
        render(bad, L2L(), "recipe.toml", {})


RECIPE = """
name = "tiny"
[rule]
name = "learnable_sgd"
[[tasks]]
family = "quadratic"
[horizon]
name = "constant"
steps = 2
[outer]
steps = 1
[validation]
every = 1
runs = 1
steps = 2
"""


def test_meta_training_leaves_a_card_and_keeps_one_that_is_there(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    new, kept = tmp_path / "new", tmp_path / "kept"
    kept.mkdir()
    (kept / "README.md").write_text("Known limits.")
    for folder in (new, kept):
        run(recipe, output=folder, progress=False)
    assert "| outer_steps | 1 |" in (new / "README.md").read_text()
    assert licence(new) == "apache-2.0"
    assert (kept / "README.md").read_text() == "Known limits."
