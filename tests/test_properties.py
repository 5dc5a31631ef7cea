"""Properties that hold for all inputs, searched for a counterexample: files, recipes, state."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import safetensors.torch
import torch
from small_training import ADAM, GRU, LSTM, awake
from torch import Tensor

from learned_optim import LearnedOptimizer, LoadedRule, weights
from learned_optim.meta_training import RecipeError
from learned_optim.meta_training.recipe import Recipe
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.rules import L2L, RULES, Default
from learned_optim.tasks.splits import HELD_OUT
from learned_optim.weights import WeightsError, save_folder

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

# The same examples every time, and no files of its own.
SETTINGS = {"deadline": None, "derandomize": True, "database": None}
SETTINGS["suppress_health_check"] = list(hypothesis.HealthCheck)
few = hypothesis.settings(max_examples=60, **SETTINGS)
many = hypothesis.settings(max_examples=250, **SETTINGS)

SMALL = L2L(layers=1, hidden=2)
DEFAULT = awake(Default(hidden=2, controller=2), name="default")

# Plain values as JSON and TOML have them, wild ones among them.
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["l2l", "default", "adam", "lstm", "mlp_classification", "digits", "vit"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


# -- weight files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config of a small rule, parsed."""
    folder = tmp_path_factory.mktemp("rule")
    save_folder(folder, SMALL, SMALL.init_weights(torch.Generator()), name="small")
    return json.loads((folder / "config.json").read_text())


@many
@hypothesis.given(st.data())
def test_any_value_at_any_key_of_a_config_loads_rightly_or_is_refused(
    content: dict[str, Any], data: st.DataObject
):
    changed = copy.deepcopy(content)
    inner = data.draw(st.booleans())
    table = changed["config"] if inner else changed
    key = data.draw(st.sampled_from(sorted(table)) | st.text(max_size=8))
    table[key] = data.draw(plain)
    blob = safetensors.torch.save(SMALL.init_weights(torch.Generator()), {"format": "pt"})
    try:
        found = weights.decode(json.dumps(changed).encode(), blob, "here")
    except WeightsError:
        return
    # What is accepted means what it says.
    assert found.rule.config() == changed["config"]
    assert {k: tuple(v.shape) for k, v in found.weights.items()} == found.rule.weight_shapes()


names = st.sampled_from([*SMALL.weight_shapes(), "other", ""])
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int32, torch.bool])


@many
@hypothesis.given(
    st.dictionaries(names, st.tuples(shapes, dtypes), max_size=3), st.sets(names, max_size=2)
)
def test_only_exactly_the_tensors_that_the_config_implies_are_taken(
    content: dict[str, Any],
    changed: dict[str, tuple[tuple[int, ...], torch.dtype]],
    dropped: set[str],
):
    tensors = SMALL.init_weights(torch.Generator())
    tensors |= {key: torch.zeros(shape, dtype=dtype) for key, (shape, dtype) in changed.items()}
    tensors = {key: value for key, value in tensors.items() if key not in dropped}
    blob = safetensors.torch.save(tensors, {"format": "pt"})
    config = content | {"weights_sha256": hashlib.sha256(blob).hexdigest()}
    right = {key: tuple(value.shape) for key, value in tensors.items()} == SMALL.weight_shapes()
    right &= all(value.dtype == torch.float32 for value in tensors.values())
    if right:
        assert weights.decode(json.dumps(config).encode(), blob, "here").rule == SMALL
    else:
        with pytest.raises(WeightsError):
            weights.decode(json.dumps(config).encode(), blob, "here")


@few
@hypothesis.given(st.sampled_from(sorted(RULES)), st.integers(0, 2**32), st.text(max_size=30))
def test_a_saved_rule_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, note: str
):
    rule = RULES[name]()
    drawn = rule.init_weights(torch.Generator().manual_seed(seed))
    folder = tmp_path_factory.mktemp("rule")
    saved = save_folder(folder, rule, drawn, name="x", extra={"note": note})
    found = weights.load_folder(folder)
    assert (found.rule, found.sha256) == (rule, saved.sha256)
    assert all(torch.equal(found.weights[key], value) for key, value in drawn.items())


# -- recipes ---------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "name": "r",
    "seed": 1,
    "rule": {"name": "l2l", "layers": 1, "hidden": 4},
    "tasks": [{"family": "mlp_classification", "dataset": "digits", "width": [8, 16], "runs": 2}],
    "estimator": {"name": "tbptt", "unroll": 5},
    "meta_loss": {"name": "sum"},
    "horizon": {"name": "constant", "steps": 10},
    "outer": {"steps": 3, "lr": 0.01},
    "validation": {"every": 2, "lengths": [1, 2]},
    "curriculum": {"factors": [1, 2]},
}


def tables(recipe: Mapping[str, Any]) -> list[Any]:
    """The recipe and every table in it."""
    inner = [value for value in recipe.values() if isinstance(value, dict)]
    return [recipe, *inner, *recipe["tasks"]]


def parsed(recipe: Mapping[str, Any]) -> Recipe | None:
    """The recipe, or None where it is refused; any other error is a bug."""
    try:
        return parse_recipe(recipe)
    except RecipeError:
        return None


def field_names(value: Any) -> set[str]:
    """Of the dataclass and of all within it: what a key of a recipe may be called."""
    if isinstance(value, tuple | list):
        return set().union(*map(field_names, value))
    if not dataclasses.is_dataclass(value):
        return set()
    fields = [field.name for field in dataclasses.fields(value)]
    return set(fields).union(*(field_names(getattr(value, name)) for name in fields))


@many
@hypothesis.given(st.data())
def test_any_value_at_any_key_of_a_recipe_is_taken_or_refused_in_words(data: st.DataObject):
    changed = copy.deepcopy(RECIPE)
    table = data.draw(st.sampled_from(range(len(tables(RECIPE)))))
    chosen = tables(changed)[table]
    chosen[data.draw(st.sampled_from(sorted(chosen)) | st.text(max_size=8))] = data.draw(plain)
    parsed(changed)


@many
@hypothesis.given(st.sampled_from(range(len(tables(RECIPE)))), st.text(min_size=1, max_size=12))
def test_a_key_that_means_nothing_is_never_overlooked(table: int, key: str):
    known = {key for one in tables(RECIPE) for key in one} | field_names(parse_recipe(RECIPE))
    hypothesis.assume(key not in known)
    changed = copy.deepcopy(RECIPE)
    tables(changed)[table][key] = 1
    assert parsed(changed) is None


@many
@hypothesis.given(
    st.sampled_from(["mlp_classification", "cnn", "softmax_regression", "autoencoder"]),
    st.lists(st.sampled_from(["digits", "mnist", "cifar10"]), min_size=1, max_size=3),
    st.booleans(),
)
def test_no_wording_lets_a_held_out_task_into_training(
    family: str, datasets: list[str], single: bool
):
    value = datasets[0] if single and len(datasets) == 1 else datasets
    changed = RECIPE | {"tasks": [{"family": family, "dataset": value}]}
    held = {(one.family, one.value) for one in HELD_OUT if one.field == "dataset"}
    forbidden = any({(None, name), (family, name)} & held for name in datasets)
    assert (parsed(changed) is None) == forbidden


# -- the optimizer's state -------------------------------------------------------------------------

optimizees = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=3)
precisions = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
rules = st.sampled_from([ADAM, LSTM, GRU, DEFAULT])


def walk(
    optimizer: LearnedOptimizer, params: Sequence[Tensor], steps: range, skip: set[int]
) -> None:
    """Steps along gradients that depend on nothing but the step; some parameters have none."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for index, param in enumerate(params):
            drawn = torch.randn(param.shape, generator=generator)
            param.grad = None if (index + step) % 3 in skip else drawn.to(param.dtype)
        optimizer.step()


@few
@hypothesis.given(
    shapes=optimizees,
    dtype=precisions,
    rule=rules,
    before=st.integers(0, 3),
    skip=st.sets(st.integers(0, 2), max_size=2),
)
def test_resuming_changes_no_bit_whatever_is_trained(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    rule: LoadedRule,
    before: int,
    skip: set[int],
):
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    optimizer = LearnedOptimizer(params, rule, total_steps=9)
    walk(optimizer, params, range(before), skip)
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    stream.seek(0)
    twins = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = LearnedOptimizer(twins, rule, total_steps=9)
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    walk(optimizer, params, range(before, before + 2), skip)
    walk(resumed, twins, range(before, before + 2), skip)
    assert all(torch.equal(one, twin) for one, twin in zip(params, twins, strict=True))


@few
@hypothesis.given(
    rule=rules,
    scale=st.sampled_from([0.0, 1e-38, 1e-20, 1.0, 1e20, 3e38]),
    dtype=precisions,
    bad=st.sampled_from([None, float("nan"), float("inf"), -float("inf")]),
)
@pytest.mark.filterwarnings("ignore:a gradient holds NaN or infinity")
def test_no_gradient_makes_a_parameter_or_a_state_non_finite(
    rule: LoadedRule, scale: float, dtype: torch.dtype, bad: float | None
):
    param = torch.nn.Parameter(torch.ones(3, 4, dtype=dtype))
    optimizer = LearnedOptimizer([param], rule)
    for step in range(3):
        grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(step)) * scale
        if bad is not None and step == 1:
            grad[1, 2] = bad
        before = param.detach().clone()
        param.grad = grad.to(dtype)
        optimizer.step()
        assert torch.isfinite(param).all()
        if not torch.isfinite(param.grad).all():
            assert torch.equal(param, before)
    assert all(torch.isfinite(value).all() for value in optimizer.state[param].values())
