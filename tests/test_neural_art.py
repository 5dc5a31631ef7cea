"""Neural art: pictures, features, the loss of the paper, the feature extractor's training."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from benchmarks.paper import features as training
from learned_optim.tasks import NeuralArt, datasets, neural_art, pictures
from learned_optim.tasks.neural_art import activations, features, gram
from learned_optim.tasks.pictures import photograph, square


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(**changes):
    config = {"content": "waves", "style": "stripes", "size": 16} | changes
    return NeuralArt(**config).sample(generator())


def test_a_picture_is_read_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    (tmp_path / "images").mkdir()
    with pytest.raises(datasets.DataUnavailable, match=r"is not in the folder .* 'stripes'"):
        photograph("tubingen")
    Image.new("RGB", (6, 4), (255, 0, 51)).save(tmp_path / "images/tubingen.png")
    found = photograph("tubingen")
    assert found.shape == (3, 4, 6)
    torch.testing.assert_close(found[:, 2, 3], torch.tensor([1.0, -1.0, -0.6]))
    (tmp_path / "images/golden_gate.jpg").write_bytes(b"no picture")
    with pytest.raises(datasets.DataUnavailable, match="cannot be read"):
        photograph("golden_gate")
    with pytest.raises(ValueError, match=r"picture must be one of .* but is 'mona_lisa'"):
        photograph("mona_lisa")


def test_generated_pictures_are_in_range_differ_and_stay_the_same():
    waves, stripes = photograph("waves"), photograph("stripes")
    assert waves.abs().max() <= 1
    assert torch.equal(waves, photograph("waves"))
    assert (waves - stripes).abs().mean() > 0.1


def test_the_square_without_a_generator_is_the_middle():
    picture = torch.zeros(3, 10, 30)
    picture[:, :, 10:20] = 1
    assert square(picture, 10).eq(1).all()
    assert square(picture, 5).shape == (3, 5, 5)


def test_squares_that_are_drawn_vary_and_stay_inside():
    picture = photograph("waves")
    parts = [square(picture, 12, generator(seed)) for seed in range(6)]
    assert all(part.shape == (3, 12, 12) for part in parts)
    assert all(part.abs().max() <= 1 for part in parts)
    assert len({float(part.sum()) for part in parts}) == 6
    assert torch.equal(parts[2], square(picture, 12, generator(2)))


def test_the_gram_matrix_does_not_know_where_things_are():
    feature = torch.randn(2, 3, 4, 5, generator=generator())
    expected = torch.stack([f @ f.T / 20 for f in feature.flatten(2)])
    torch.testing.assert_close(gram(feature), expected)
    torch.testing.assert_close(gram(feature.flip(-1)), expected)


def test_the_maps_of_the_features_have_the_promised_sizes():
    maps = activations(features(), torch.zeros(2, 3, 16, 16))
    assert [tuple(x.shape) for x in maps] == [(2, 24, 16, 16), (2, 32, 8, 8), (2, 48, 4, 4)]


def test_the_loss_is_the_sum_of_its_three_terms():
    params, constants = make().init(generator(1))
    params = {"image": params["image"] + 0.3 * torch.randn(3, 16, 16, generator=generator(2))}
    names = ("content_weight", "style_weight", "smoothness")
    content, style, rough = (
        make(**dict.fromkeys(names, 0.0) | {name: 1.0}).loss(params, constants) for name in names
    )
    weighted = make(content_weight=2.0, style_weight=3.0, smoothness=5.0).loss(params, constants)
    torch.testing.assert_close(weighted, 2 * content + 3 * style + 5 * rough)
    image, maps = params["image"], activations(features(), params["image"][None])
    steps = (image[:, 1:] - image[:, :-1], image[..., 1:] - image[..., :-1])
    torch.testing.assert_close(rough, sum(step.square().mean() for step in steps))
    wanted = constants["content"]
    distance = (maps[-1][0] - wanted).square().sum() / wanted.square().sum()
    torch.testing.assert_close(content, distance)
    shares = [
        (gram(x)[0] - constants[f"gram{i}"]).square().sum() / constants[f"gram{i}"].square().sum()
        for i, x in enumerate(maps)
    ]
    torch.testing.assert_close(style, sum(shares) / 3)


def test_a_run_starts_at_the_photograph_where_only_the_style_is_wrong():
    params, constants = make().init(generator(1))
    assert make(style_weight=0.0, smoothness=0.0).loss(params, constants).item() == 0
    assert make(content_weight=0.0, smoothness=0.0).loss(params, constants) > 0.1


def test_the_whole_picture_is_the_same_for_every_generator():
    task = make(whole=True)
    first, second = (task.init(generator(seed))[0]["image"] for seed in (1, 2))
    assert torch.equal(first, second)
    assert torch.equal(first, square(photograph("waves"), 16))


def test_the_extractor_learns_to_classify(monkeypatch):
    labels = torch.arange(200) % 10
    images = (25 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    monkeypatch.setattr(training, "load", lambda *_: datasets.Images(images, labels))
    params = training.train("any", steps=150)
    untrained = training.start(generator(), 16)
    assert params.keys() == untrained.keys()
    assert training.accuracy(params, "any") > 2 * training.accuracy(untrained, "any")


def test_the_committed_features_are_those_of_the_result_file():
    result = json.loads((training.RESULTS / "cifar_features.json").read_text(encoding="utf-8"))
    assert result["features"]["steps"] == training.STEPS
    assert result["features"]["test_accuracy"] > 0.5
    shapes = {key: value.shape for key, value in training.start(generator(), 32).items()}
    assert {key: value.shape for key, value in features().items()} == {
        key: shape for key, shape in shapes.items() if key.startswith("conv")
    }
    assert neural_art.FEATURES_FILE.stat().st_size < 120_000
    assert set(pictures.PHOTOGRAPHS).isdisjoint(pictures.PAINTINGS)
