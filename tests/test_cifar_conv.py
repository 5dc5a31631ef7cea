"""The paper's convolutional classifiers: the network, the labels, the split of the data."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from learned_optim.tasks import CifarConv, cifar_conv, datasets
from learned_optim.tasks.cifar_conv import LABELS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(**changes):
    return CifarConv(**{"dataset": "digits", "batch_size": 8} | changes).sample(generator())


@pytest.fixture
def colours(monkeypatch):
    """Ten images of each label, all pixels the label, in place of CIFAR-10."""
    labels = torch.arange(100) % 10
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    monkeypatch.setattr(datasets, "load", lambda *_: datasets.Images(images, labels))
    cifar_conv._subset.cache_clear()
    yield
    cifar_conv._subset.cache_clear()


def test_the_network_is_that_of_torch_nn():
    task = make()
    params, constants = task.init(generator(1))
    assert constants == {}
    batch = task.batch(generator(2))
    stages = []
    for i in range(3):
        convolution = torch.nn.Conv2d(16 if i else 1, 16, 5, padding=2, bias=False)
        norm = torch.nn.BatchNorm2d(16)
        convolution.load_state_dict({"weight": params[f"conv{i}.weight"]})
        norm.weight.data, norm.bias.data = params[f"norm{i}.weight"], params[f"norm{i}.bias"]
        stages += [convolution, torch.nn.MaxPool2d(2), norm, torch.nn.ReLU()]
    dense = [torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)]
    for layer, name in ((dense[0], "hidden"), (dense[2], "head")):
        layer.load_state_dict({key: params[f"{name}.{key}"] for key in ("weight", "bias")})
    network = torch.nn.Sequential(*stages, torch.nn.Flatten(), *dense).train()
    expected = functional.cross_entropy(network(2 * batch["x"] - 1), batch["y"])
    torch.testing.assert_close(task.loss(params, batch), expected)


def test_the_papers_network_has_its_sizes():
    params, _ = CifarConv().sample(generator()).init(generator())
    shapes = {key: tuple(value.shape) for key, value in params.items()}
    assert shapes["conv0.weight"] == (16, 3, 5, 5)
    assert shapes["conv2.weight"] == (16, 16, 5, 5)
    assert shapes["hidden.weight"] == (32, 256)
    assert shapes["head.weight"] == (10, 32)
    assert sum(value.numel() for value in params.values()) == 22_650


def test_no_label_that_sub_is_trained_on_is_in_the_smaller_test_sets():
    assert set(LABELS["first_two"]) < set(LABELS["first_five"])
    assert not set(LABELS["last_five"]) & set(LABELS["first_five"])
    assert set(LABELS["last_five"]) | set(LABELS["first_five"]) == set(LABELS["all"])


@pytest.mark.parametrize("labels", LABELS)
def test_minibatches_hold_only_the_labels_asked_for_numbered_from_zero(labels, colours):
    task = make(labels=labels, dataset="cifar10", batch_size=64)
    batch = task.batch(generator(3))
    assert batch["x"].shape == (64, 3, 32, 32)
    original = (255 * batch["x"][:, 0, 0, 0]).round().long()
    assert set(original.tolist()) == set(LABELS[labels])
    assert torch.equal(torch.tensor(LABELS[labels])[batch["y"]], original)
    assert task.classes == len(LABELS[labels])
    assert len(task.full()["y"]) == 10 * len(LABELS[labels])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"labels": "some"}, "labels must be one of .* but is 'some'"),
        ({"dataset": "mnist"}, "dataset must be one of .* but is 'mnist'"),
        ({"batch_size": 1}, r"batch_size must be in \[2, 8192\] but is 1"),
        ({"channels": 0}, r"channels must be in \[1, 512\] but is 0"),
    ],
)
def test_wrong_values_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        CifarConv(**config)
