"""Small fully connected classifiers of digits, section 3.2 of the paper.

Andrychowicz et al., "Learning to learn by gradient descent by gradient descent", NIPS 2016,
https://arxiv.org/abs/1606.04474.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import datasets
from learned_optim.tasks.base import Batch, Params, Split, Task, TaskFamily
from learned_optim.tasks.nets import ACTIVATION_FUNCTIONS, ACTIVATIONS

_CLASSES = 10
_PIXELS = {"mnist": 28 * 28, "digits": 8 * 8}


@dataclass(frozen=True)
class MLPTask(Task):
    """Cross entropy of an MLP on fresh minibatches.

    Parameters `w<i>` `(out, in)` and `b<i>` `(out,)`, i = 0 .. layers; minibatch `x`
    `(batch_size, pixels)` in [0, 1] and `y` `(batch_size,)` int64.
    """

    hidden: int
    layers: int
    activation: str
    batch_size: int
    init_std: float
    dataset: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of all layers, input and output included."""
        return (_PIXELS[self.dataset], *([self.hidden] * self.layers), _CLASSES)

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights and biases iid N(0, init_std^2); there are no constants."""
        params = {}
        for layer, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            for key, shape in ((f"w{layer}", (fan_out, fan_in)), (f"b{layer}", (fan_out,))):
                drawn = torch.randn(shape, generator=generator, device=generator.device)
                params[key] = drawn.mul_(self.init_std)
        return params, {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` images drawn with replacement."""
        images, labels = datasets.load(self.dataset, split, generator.device)
        index = torch.randint(
            len(labels), (self.batch_size,), generator=generator, device=generator.device
        )
        # Bytes are gathered and only then widened: a quarter of the memory traffic; index_select,
        # because indexing by a tensor takes seven times as long on rows of bytes.
        x = datasets.scaled(images.flatten(1).index_select(0, index))
        return {"x": x, "y": labels.index_select(0, index)}

    def full(self, split: Split = "test") -> Batch:
        """Every image of a split as one batch, for evaluation."""
        images, labels = datasets.load(self.dataset, split)
        return {"x": datasets.scaled(images).flatten(1), "y": labels}

    def logits(self, params: Params, x: Tensor) -> Tensor:
        """`(B, pixels)` -> `(B, 10)`."""
        activation = ACTIVATION_FUNCTIONS[self.activation]
        x = functional.linear(x, params["w0"], params["b0"])
        for layer in range(1, self.layers + 1):
            x = functional.linear(activation(x), params[f"w{layer}"], params[f"b{layer}"])
        return x

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy over the minibatch."""
        x = batch["x"].to(params["w0"].dtype)
        return functional.cross_entropy(self.logits(params, x), batch["y"])


@dataclass(frozen=True)
class MnistMLP(TaskFamily):
    """The paper's MNIST networks; the defaults are its base task, 784-20-10, 15,910 parameters.

    Paper / released code / ours, where they differ:
    - start: Gaussian of unstated width / weights and biases N(0, 0.01^2) / as the released code;
    - pixels: not stated / [0, 1] / [0, 1];
    - minibatches: fresh, of 128 / drawn with replacement / drawn with replacement.

    Args:
        hidden: units in each hidden layer.
        layers: number of hidden layers.
        activation: one of `nets.ACTIVATIONS`.
        batch_size: images in a minibatch.
        init_std: standard deviation of weights and biases at the start.
        dataset: "mnist", or "digits" (64 inputs, no download).

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "mnist_mlp"

    hidden: int = 20
    layers: int = 1
    activation: str = "sigmoid"
    batch_size: int = 128
    init_std: float = 0.01
    dataset: str = "mnist"

    def __post_init__(self) -> None:
        for field, high in (("hidden", 4096), ("layers", 32), ("batch_size", 60_000)):
            if not 1 <= getattr(self, field) <= high:
                raise ValueError(f"{field} must be in [1, {high}] but is {getattr(self, field)}")
        if not 0.0 <= self.init_std <= 1e3:
            raise ValueError(f"init_std must be in [0, 1e3] but is {self.init_std}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS} but is {self.activation!r}")
        if self.dataset not in _PIXELS:
            raise ValueError(f"dataset must be one of {tuple(_PIXELS)} but is {self.dataset!r}")

    def sample(self, generator: torch.Generator) -> MLPTask:
        """The structure is the config's; starts and minibatches are drawn by the task."""
        return MLPTask(
            self.hidden, self.layers, self.activation, self.batch_size, self.init_std, self.dataset
        )
