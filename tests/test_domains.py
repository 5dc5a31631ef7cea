"""Kinds of problem that no list of families has: what each asks, and that it can be learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.general import domains
from benchmarks.general.domains import diffusion, word_vectors
from benchmarks.general.items import SPLITS
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Task

# Small, and with data that come with the packages.
DIGITS = {"dataset": "digits", "pool": 1}
TASKS: dict[str, Task] = {
    "adding": domains.Adding(length=6, width=8, batch_size=16),
    "bandit": domains.Bandit(**DIGITS, width=16, batch_size=32),
    "burgers": domains.Burgers(depth=2, width=8, points=32),
    "contrastive": domains.Contrastive(**DIGITS, batch_size=16, width=4, code=8),
    "diffusion": domains.Diffusion(**DIGITS, batch_size=16, width=16, depth=1),
    "experts": domains.Experts(**DIGITS, batch_size=32, width=16, experts=3),
    "graph": domains.Graph(nodes=40, labelled=3, inputs=8),
    "label_noise": domains.LabelNoise(**DIGITS, batch_size=32, width=32),
    "photograph": domains.Photograph(picture="waves", side=16, features=8, width=16, batch_size=32),
    "word_vectors": domains.WordVectors(words=12, width=8, batch_size=16),
}
TEXT = ("to be or not to be that is the question whether it is nobler in the mind " * 20).split()


@pytest.fixture(autouse=True)
def text(monkeypatch: pytest.MonkeyPatch):
    """A few words in place of Shakespeare's."""
    monkeypatch.setattr(word_vectors, "_words", lambda split: TEXT)
    word_vectors.spoken.cache_clear()
    yield
    word_vectors.spoken.cache_clear()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(task: Task, seed: int = 0) -> tuple[Params, Batch]:
    """Parameters, and constants with a minibatch."""
    generator = draw(seed)
    params, constants = task.init(generator)
    return params, constants | task.batch(generator)


def gradients(task: Task, params: Params, batch: Batch) -> Params:
    return torch.func.grad(task.loss)(params, batch)


def test_the_list_has_one_of_each():
    kinds = [type(item.task) for item in SPLITS["domains"]]
    assert sorted(kind.__name__ for kind in kinds) == sorted(set(domains.__all__) - {"Fixed"})
    assert {type(task) for task in TASKS.values()} == set(kinds)
    assert [item.name for item in SPLITS["domains"]] == [*TASKS]


@pytest.mark.parametrize("name", TASKS)
def test_runs_of_it_are_vectorised_and_every_parameter_counts(name: str):
    task = TASKS[name]
    runs = Runs(task, [1, 2], perturbations=2)
    params = {key: value.clone() for key, value in runs.start().items()}
    moved = {key: torch.zeros(()) for key in params}
    for _ in range(4):
        grads, loss = runs.evaluate(params, runs.next_batch())
        assert loss.shape == (2, 2)
        assert bool(loss.isfinite().all())
        for key, grad in grads.items():
            moved[key] = moved[key] + grad.abs().sum()
            # A context of zeros has no gradient for the words before the first step.
            params[key] = params[key] - 0.01 * grad
    assert all(value > 0 for value in moved.values()), moved


@pytest.mark.parametrize("name", TASKS)
def test_it_can_be_learned(name: str):
    task = TASKS[name]
    params, constants = task.init(draw())
    generator = draw(1)
    leaves = {key: value.requires_grad_() for key, value in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=0.01)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = task.loss(leaves, constants | task.batch(generator))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    first, last = (torch.stack(part).mean() for part in (losses[:20], losses[-20:]))
    assert last < 0.95 * first


def test_two_numbers_are_marked_and_their_sum_is_asked():
    x, y = TASKS["adding"].batch(draw()).values()
    numbers, marks = x.unbind(-1)
    assert torch.equal(marks.sum(-1), torch.full((16,), 2.0))
    assert torch.equal(marks[:, :3].sum(-1), torch.ones(16))
    torch.testing.assert_close(y, (numbers * marks).sum(-1))


def test_the_policys_gradient_is_that_of_its_mean_cost():
    task = replace(domains.Bandit(**DIGITS, width=8), batch_size=200_000)
    params, batch = start(task)
    params = {key: value.double() for key, value in params.items()}
    batch = {key: v.double() if v.is_floating_point() else v for key, v in batch.items()}

    def expected(params: Params) -> Tensor:
        likely = nets.mlp(params, batch["x"].flatten(1), 3, "relu").softmax(-1)
        return 1 - likely.gather(1, batch["y"][:, None]).mean()

    found, exact = gradients(task, params, batch), torch.func.grad(expected)(params)
    for key, value in exact.items():
        assert (found[key] - value).norm() < 0.15 * value.norm(), key
    assert abs(task.loss(params, batch) - expected(params)) < 0.01


def test_the_equation_is_burgers():
    task = TASKS["burgers"]
    params, batch = start(task)
    params = {key: value.double() for key, value in params.items()}
    batch = {key: value.double() for key, value in batch.items()}
    places = batch["inside"].requires_grad_()

    def u(places: Tensor) -> Tensor:
        return nets.mlp(params, places, 3, "tanh").squeeze(-1)

    def slope(values: Tensor) -> Tensor:
        return torch.autograd.grad(values.sum(), places, create_graph=True)[0]

    value = u(places)
    u_t, u_x = slope(value).unbind(-1)
    u_xx = slope(u_x)[:, 1]
    residual = u_t + value * u_x - 0.01 / math.pi * u_xx
    zero, edge = torch.zeros_like(batch["start"]), u(batch["edge"])
    begin = u(torch.stack((zero, batch["start"]), -1)) + torch.sin(math.pi * batch["start"])
    expected = residual.square().mean() + begin.square().mean() + edge.square().mean()
    torch.testing.assert_close(task.loss(params, batch), expected)
    assert set(batch["edge"][:, 1].tolist()) == {-1.0, 1.0}


def test_a_view_is_looked_for_among_all_others():
    task = TASKS["contrastive"]
    params, batch = start(task)
    alike = batch | {"second": batch["first"]}
    mixed = batch | {"second": batch["first"].roll(1, 0)}
    assert task.loss(params, alike) < task.loss(params, mixed)
    # The best possible: its partner at a cosine of 1, all others at -1 at least.
    assert task.loss(params, alike) > math.log1p(30 * math.exp(-2 / 0.2))


def test_noise_is_added_as_the_paper_does():
    signal = diffusion.signal()
    torch.testing.assert_close(signal[0], torch.tensor(1 - 1e-4))
    assert signal[-1] < 1e-4
    task = TASKS["diffusion"]
    batch = task.batch(draw())
    assert batch["x"].shape == batch["noise"].shape == (16, 64)
    assert batch["time"].abs().max() <= 1


def test_an_expert_that_gets_no_image_gets_no_gradient():
    task = TASKS["experts"]
    params, batch = start(task)
    params["gate.bias"] = torch.tensor([0.0, 50.0, 0.0])
    found = gradients(task, params, batch)
    assert not found["expert0.layer0.weight"].any()
    assert found["expert1.layer0.weight"].any()
    # All to one: three times as uneven as even.
    even = replace(domains.Experts(**DIGITS, batch_size=32, width=16, experts=3), balance=0.0)
    assert task.loss(params, batch) - even.loss(params, batch) == pytest.approx(0.03, rel=1e-3)


def test_a_graph_is_normalised_and_its_labels_are_parted():
    task = TASKS["graph"]
    _, constants = task.init(draw())
    adjacency = constants["adjacency"]
    assert torch.equal(adjacency, adjacency.mT)
    assert torch.linalg.eigvalsh(adjacency)[-1].item() == pytest.approx(1, abs=1e-5)
    train, test = (task.batch(draw(), split)["known"] for split in ("train", "test"))
    assert torch.equal(train + test, torch.ones(40))
    assert train.sum() == 12


def test_labels_are_wrong_in_training_alone():
    task = replace(domains.LabelNoise(**DIGITS, width=8), batch_size=4000)
    clean = replace(task, wrong=0.0)
    noisy, right = (each.batch(draw())["y"] for each in (task, clean))
    # Of those that are drawn anew a tenth stays right.
    assert (noisy != right).float().mean().item() == pytest.approx(0.36, abs=0.03)
    dropped = task.batch(draw())["keep0"]
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    test = task.batch(draw(), "test")
    assert torch.equal(test["y"], clean.batch(draw(), "test")["y"])
    assert bool((test["keep1"] == 1).all())


def test_a_photograph_is_asked_for_pixel_by_pixel():
    task = TASKS["photograph"]
    params, batch = start(task)
    params["layer3.weight"].zero_()  # says grey everywhere
    expected = (batch["pixels"][batch["index"]] - 0.5).square().mean()
    torch.testing.assert_close(task.loss(params, batch), expected)
    assert 0 <= batch["pixels"].min() < batch["pixels"].max() <= 1


def test_words_are_near_each_other_in_the_text():
    task = TASKS["word_vectors"]
    text = word_vectors.spoken(12, "train", "")
    near = {
        (int(text[place]), int(text[place + away]))
        for place in range(4, len(text) - 4)
        for away in (-4, -3, -2, -1, 1, 2, 3, 4)
    }
    batch = task.batch(draw())
    pairs = zip(batch["word"].tolist(), batch["others"][:, 0].tolist(), strict=True)
    assert set(pairs) <= near
    # With a context of zeros every guess is even.
    params, batch = start(task)
    assert task.loss(params, batch).item() == pytest.approx(5 * math.log(2))


def test_words_are_numbered_by_how_often_they_are_said():
    text = word_vectors.spoken(3, "train", "")
    counts = text.bincount(minlength=3).tolist()
    assert counts == sorted(counts, reverse=True)
    assert counts == [sum(word == each for word in TEXT) for each in ("be", "is", "the")]
