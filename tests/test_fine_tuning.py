"""Problems of fine-tuning: what is learned before, what changes, what stays."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.general import fine_tuning
from benchmarks.general.fine_tuning import (
    ALPHA,
    VIEWS,
    AdapterTask,
    FineTuning,
    FineTuningTask,
    SeenTask,
    pretrained,
)
from benchmarks.general.items import SPLITS
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import CNN, TransformerLanguageModel
from learned_optim.tasks.base import Task

IMAGES = CNN(dataset="digits", depth=2, width=4, activation="relu", head="flatten", batch_size=16)
TEXT = TransformerLanguageModel(
    dataset="generated", alphabet=8, order=1, depth=1, width=16, heads=2, length=8, batch_size=8
)
STEPS = 200


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(family: FineTuning) -> FineTuningTask:
    return family.sample(draw())


def mean_loss(task: Task, params: dict[str, torch.Tensor], constants: dict[str, torch.Tensor]):
    generator = draw(1)
    losses = [task.loss(params, constants | task.batch(generator)) for _ in range(20)]
    return torch.stack(losses).mean()


def test_a_network_starts_where_it_ended():
    task = sample(FineTuning(IMAGES, "whole", "inverted", STEPS))
    params, constants = task.init(draw(3))
    fresh, _ = task.after.init(draw(3))
    learned = pretrained(task.before, STEPS)
    assert params.keys() == fresh.keys()
    assert all(torch.equal(params[key], learned[key]) for key in params)
    assert mean_loss(task.before, params, constants) < 0.6 * mean_loss(
        task.before, fresh, constants
    )


def test_two_runs_share_what_was_learned_but_not_the_tensors():
    task = sample(FineTuning(IMAGES, "whole", "turned", STEPS))
    one, other = (task.init(draw(seed))[0] for seed in (0, 1))
    one["head.bias"].add_(1)
    assert torch.equal(one["conv0.weight"], other["conv0.weight"])
    assert not torch.equal(one["head.bias"], other["head.bias"])
    assert torch.equal(other["head.bias"], pretrained(task.before, STEPS)["head.bias"])


def test_a_head_is_drawn_anew_in_every_run():
    task = sample(FineTuning(IMAGES, "coarse", "whole", STEPS, fresh="head"))
    one, other = (task.init(draw(seed))[0] for seed in (0, 1))
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert torch.equal(one["conv1.weight"], other["conv1.weight"])
    assert torch.equal(one["head.weight"], task.after.init(draw(0))[0]["head.weight"])


def test_the_training_before_is_the_same_at_every_call_and_in_every_process():
    task = sample(FineTuning(IMAGES, "whole", "turned", 5))
    first = {key: value.clone() for key, value in pretrained(task.before, 5).items()}
    pretrained.cache_clear()
    again = pretrained(task.before, 5)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_the_training_before_does_not_need_its_caller_to_record_gradients():
    task = sample(FineTuning(IMAGES, "whole", "turned", 5))
    pretrained.cache_clear()
    with torch.no_grad():
        within, _ = task.init(draw())
    pretrained.cache_clear()
    outside, _ = task.init(draw())
    assert all(torch.equal(within[key], outside[key]) for key in outside)


@pytest.mark.parametrize(("view", "expected"), [("inverted", 1.0), ("turned", 0.0)])
def test_images_are_seen_otherwise_and_labels_stay(view, expected):
    task = IMAGES.sample(draw())
    plain = SeenTask(task, "whole").batch(draw(2))
    seen = SeenTask(task, view).batch(draw(2))
    assert torch.equal(seen["y"], plain["y"])
    if view == "turned":
        assert torch.equal(seen["x"][0, 0, :, 0], plain["x"][0, 0, 0].flip(0))
    else:
        assert torch.allclose(seen["x"] + plain["x"], torch.tensor(expected))


def test_labels_become_vehicle_or_animal():
    task = IMAGES.sample(draw())
    plain, seen = (SeenTask(task, view).batch(draw(2)) for view in ("whole", "coarse"))
    assert torch.equal(seen["x"], plain["x"])
    # CIFAR-10: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
    vehicles = torch.isin(plain["y"], torch.tensor([0, 1, 8, 9]))
    assert torch.equal(seen["y"], (~vehicles).long())


def test_early_and_late_text_do_not_overlap():
    task = TEXT.sample(draw())
    tokens = task.corpus.tokens("train")
    cut = int(fine_tuning.EARLY * len(tokens))
    parts = {"early": tokens[:cut], "late": tokens[cut:]}
    for view, part in parts.items():
        windows = SeenTask(task, view).batch(draw(4))["tokens"]
        assert windows.shape == (task.batch_size, task.length + 1)
        inside = part.unfold(0, task.length + 1, 1)
        assert all((inside == window).all(-1).any() for window in windows)


def test_adapters_change_nothing_at_first_and_hold_no_learned_weight():
    task = sample(FineTuning(TEXT, "early", "late", STEPS, rank=2))
    assert isinstance(task, AdapterTask)
    params, constants = task.init(draw(3))
    learned = pretrained(task.before, STEPS)
    assert torch.equal(
        mean_loss(task, params, constants), mean_loss(task.after, dict(learned), constants)
    )
    assert {key.rpartition(".")[0] for key in params} == {
        f"block0.{name}.weight" for name in ("attention", "mix", "expand", "contract")
    }
    assert sum(value.numel() for value in params.values()) < 0.5 * sum(
        value.numel() for value in learned.values()
    )


def test_adapters_are_added_as_their_product():
    task = sample(FineTuning(TEXT, "early", "late", STEPS, rank=2))
    params, constants = task.init(draw(3))
    params["block0.mix.weight.up"] = torch.randn(16, 2, generator=draw())
    whole = dict(pretrained(task.before, STEPS))
    product = params["block0.mix.weight.up"] @ params["block0.mix.weight.down"]
    whole["block0.mix.weight"] = whole["block0.mix.weight"] + ALPHA * product
    expected = mean_loss(task.after, whole, constants)
    assert torch.equal(mean_loss(task, params, constants), expected)
    untouched = mean_loss(task.after, dict(pretrained(task.before, STEPS)), constants)
    assert not torch.equal(expected, untouched)


@pytest.mark.parametrize("rank", [0, 2])
def test_runs_of_it_are_vectorised_like_those_of_any_task(rank):
    task = sample(FineTuning(TEXT, "early", "late", STEPS, rank=rank))
    runs = Runs(task, [1, 2], perturbations=3)
    params = {key: value.clone() for key, value in runs.start().items()}
    grads, loss = runs.evaluate(params, runs.next_batch())
    assert loss.shape == (2, 3)
    assert grads.keys() == params.keys()
    assert any(bool(grad.any()) for grad in grads.values())


def test_data_that_nobody_knows_are_refused():
    with pytest.raises(ValueError, match="'upside_down'"):
        FineTuning(IMAGES, "whole", "upside_down")


def test_every_problem_of_the_list_can_be_described_without_training():
    for item in SPLITS["fine_tuning"]:
        task = item.task
        assert isinstance(task, FineTuningTask)
        assert {task.before.view, task.after.view} <= VIEWS.keys()
        assert dataclasses.asdict(task)["steps"] >= 1000
