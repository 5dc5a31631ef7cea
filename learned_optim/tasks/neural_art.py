"""Neural art (section 3.4 of the paper): paint a photograph in the style of a painting.

Andrychowicz et al., "Learning to learn by gradient descent by gradient descent", NIPS 2016,
https://arxiv.org/abs/1606.04474, after Gatys, Ecker, Bethge, "A neural algorithm of artistic
style", 2015, https://arxiv.org/abs/1508.06576.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Task
from learned_optim.tasks.pictures import PAINTINGS, PHOTOGRAPHS, PICTURES, photograph, square

FEATURES_FILE = Path(__file__).with_name("cifar_features.safetensors")
LAYERS = ("conv0", "conv1", "conv2")


def activations(weights: Params, x: Tensor) -> list[Tensor]:
    """The feature maps of an image, one of each of `LAYERS`.

    Args:
        weights: `conv<i>.weight` and `conv<i>.bias`.
        x: `(B, 3, H, W)` in [-1, 1].

    Returns:
        `(B, C, H, W)` after the first convolution and its ReLU; each further convolution sees the
        average of two by two pixels of the one before.
    """
    maps = []
    for i, layer in enumerate(LAYERS):
        x = functional.avg_pool2d(x, 2) if i else x
        x = torch.relu(nets.conv(weights, layer, x))
        maps.append(x)
    return maps


def gram(feature: Tensor) -> Tensor:
    """Which features come together, wherever that is: `(B, C, H, W)` -> `(B, C, C)`."""
    flat = feature.flatten(2)
    return flat @ flat.mT / flat.shape[-1]


@dataclass(frozen=True)
class NeuralArtTask(Task):
    """The pixels of an image are the parameters.

        content_weight * |F - F_content|^2 / |F_content|^2                     last layer
        + style_weight * mean over layers of |G - G_style|^2 / |G_style|^2     Gram matrices
        + smoothness * mean square of the differences of neighbouring pixels

    Parameter `image` `(3, size, size)` in [-1, 1], which starts as the photograph; constants
    `content` `(C, size / 4, size / 4)` and `gram<i>` `(C_i, C_i)`.
    """

    content: str
    style: str
    size: int
    content_weight: float
    style_weight: float
    smoothness: float
    whole: bool

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """A random part of the photograph (`whole`: the middle of it), and what it shall become."""
        drawn = None if self.whole else generator
        image = square(photograph(self.content), self.size, drawn)
        painting = square(photograph(self.style), self.size)
        image, painting = (x.to(generator.device) for x in (image, painting))
        weights = features(str(generator.device))
        with torch.no_grad():
            constants = {"content": activations(weights, image[None])[-1][0]}
            for i, feature in enumerate(activations(weights, painting[None])):
                constants[f"gram{i}"] = gram(feature)[0]
        return {"image": image.clone()}, constants

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See the class."""
        image = params["image"]
        weights = {key: value.to(image.dtype) for key, value in features(str(image.device)).items()}
        maps = activations(weights, image[None])
        content = _relative(maps[-1][0], batch["content"])
        style = [_relative(gram(x)[0], batch[f"gram{i}"]) for i, x in enumerate(maps)]
        rough = image.diff(dim=-1).square().mean() + image.diff(dim=-2).square().mean()
        return (
            self.content_weight * content
            + self.style_weight * torch.stack(style).mean()
            + self.smoothness * rough
        )


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum() / wanted.square().sum()


@functools.lru_cache(maxsize=4)
def features(device: str = "cpu") -> Params:
    """The convolutions of a CIFAR-10 classifier that comes with the package.

    Paper / ours: a classifier of ImageNet / three convolutions that
    `python -m benchmarks.paper.features` trained on CIFAR-10, as no large pretrained network is
    used anywhere here. Its features are edges, colours and small textures: styles come out as
    colour and brush stroke.
    """
    return safetensors.torch.load_file(FEATURES_FILE, device=device)


@dataclass(frozen=True)
class NeuralArt(AxesFamily):
    """Photographs to paint.

    Paper / ours, where the paper is silent or we depart:
    - start: not stated / the photograph;
    - content: 1800 images of ImageNet / random parts of two photographs;
    - weights of the three terms: not stated / 1, 5 and 0.3 of terms without units.

    Args (all axes, see `axes`):
        content: the photograph, one of `pictures.PICTURES`.
        style: the painting, likewise.
        size: pixels along a side.
        content_weight: of the distance to the photograph's features.
        style_weight: of the distance to the painting's Gram matrices.
        smoothness: of the differences of neighbouring pixels.
        whole: the middle of the photograph instead of a random part.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "neural_art"
    task = NeuralArtTask

    content: Strings = axis(*PHOTOGRAPHS[:2], among=PICTURES)
    style: Strings = axis(PAINTINGS[0], among=PICTURES)
    size: Ints = axis(64, within=(8, 1024))
    content_weight: Floats = axis(1.0, within=(0.0, 1e4))
    style_weight: Floats = axis(5.0, within=(0.0, 1e4))
    smoothness: Floats = axis(0.3, within=(0.0, 1e4))
    whole: bool = axis(False)
