"""The coordinatewise LSTM of "Learning to learn by gradient descent by gradient descent".

Andrychowicz, Denil, Gomez, Hoffman, Pfau, Schaul, Shillingford, de Freitas, NIPS 2016,
https://arxiv.org/abs/1606.04474, section 2.1 and appendix A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from learned_optim import features
from learned_optim.cells import CELLS, affine, uniform
from learned_optim.rules.base import Coordinates, State, StateSpec, UpdateRule, Weights, later
from learned_optim.rules.mirror import FEATURES, mirrored_cells, odd_pair

STORED = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class L2L(UpdateRule):
    """The paper's rule: `theta <- theta + scale * m(gradient, h, phi)`.

    Every coordinate has its own recurrent state; all share the weights phi. Two LSTM layers of 20
    hidden units, a linear head to one output, zero initial state.

    Paper / released code / ours, where they differ:
    - inputs: p = 10 / k = 5 / p = 10;
    - scale: 0.1 with preprocessing, 1 on quadratics / 0.01 / as the paper;
    - forget-gate bias: not stated / 1 (Sonnet) / 1, stored in the weights;
    - initial weights: not stated / Sonnet's truncated normal / uniform, as torch.nn.LSTM, with a
      head near zero.

    Args:
        cell: a key of `CELLS`; the paper has "lstm", the others are for the ablation.
        layers: number of stacked cells.
        hidden: units in each.
        preprocess: "log_sign" (`features.log_sign`) or "none" (the raw gradient).
        p: constant of `log_sign`.
        scale: factor on the output.
        forget_bias: added to the forget gate's bias when weights are drawn.
        state: what the state is kept in between steps, "float32" as in the paper or "float16".

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "l2l"

    cell: str = "lstm"
    layers: int = 2
    hidden: int = 20
    preprocess: Literal["log_sign", "none"] = "log_sign"
    p: float = 10.0
    scale: float = 0.1
    forget_bias: float = 1.0
    state: Literal["float32", "float16"] = later("float32")

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell must be one of {sorted(CELLS)} but is {self.cell!r}")
        if self.preprocess not in ("log_sign", "none"):
            raise ValueError(f"preprocess must be 'log_sign' or 'none' but is {self.preprocess!r}")
        if self.state not in STORED:
            raise ValueError(f"state must be one of {sorted(STORED)} but is {self.state!r}")
        for field, low, high in (("layers", 1, 8), ("hidden", 1, 256)):
            if not low <= getattr(self, field) <= high:
                raise ValueError(
                    f"{field} must be in [{low}, {high}] but is {getattr(self, field)}"
                )
        for field, low, high in (("p", 1.0, 50.0), ("scale", 1e-8, 1e3), ("forget_bias", -10, 10)):
            if not low <= getattr(self, field) <= high:
                raise ValueError(
                    f"{field} must be in [{low}, {high}] but is {getattr(self, field)}"
                )

    @property
    def inputs(self) -> int:
        """Number of input features."""
        return 2 if self.preprocess == "log_sign" else 1

    @property
    def rows_per_layer(self) -> int:
        """Rows of one layer in the state."""
        return CELLS[self.cell].state_vectors * self.hidden

    @property
    def state_spec(self) -> Mapping[str, StateSpec]:
        """`cell`: layer after layer, in each the hidden vector first."""
        rows = self.layers * self.rows_per_layer
        return {"cell": StateSpec(rows=rows, dtype=STORED[self.state])}

    def _layer_inputs(self, layer: int) -> int:
        return self.inputs if layer == 0 else self.hidden

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """`cell.<layer>.<name>` for each layer, then the head."""
        cell = CELLS[self.cell]
        shapes = {
            f"cell.{layer}.{key}": shape
            for layer in range(self.layers)
            for key, shape in cell.weight_shapes(self._layer_inputs(layer), self.hidden).items()
        }
        return shapes | {"head.w": (1, self.hidden), "head.b": (1,)}

    def init_weights(self, generator: torch.Generator) -> Weights:
        """Cells as `Cell.init_weights`; the head a hundredth of torch.nn.Linear's.

        The rule starts by doing next to nothing. With a head of full size its first steps are
        harmful, meta-training drives the output to zero, and on MNIST it then sat at the initial
        loss for 300 to over 800 updates; from a small head it learns within 25.
        """
        cell = CELLS[self.cell]
        weights = {}
        for layer in range(self.layers):
            drawn = cell.init_weights(
                self._layer_inputs(layer), self.hidden, generator, self.forget_bias
            )
            weights |= {f"cell.{layer}.{key}": value for key, value in drawn.items()}
        bound = 0.01 * self.hidden**-0.5
        for key, shape in (("head.w", (1, self.hidden)), ("head.b", (1,))):
            weights[key] = uniform(shape, bound, generator)
        return weights

    def mirrored(self, weights: Weights) -> Weights:
        """See `mirrored_cells`; the rule itself may answer to a zero gradient with a step."""
        return mirrored_cells(weights, self.hidden, FEATURES[self.preprocess])

    def odd_part(self, weights: Weights) -> tuple[L2L, Weights]:
        """A rule of twice as many units that is odd in the gradient: see `odd_pair`."""
        wide = replace(self, hidden=2 * self.hidden)
        return wide, odd_pair(weights, self.hidden, FEATURES[self.preprocess])

    def features(self, coords: Coordinates) -> Tensor:
        """What the first layer sees, `(..., inputs, N)`."""
        if self.preprocess == "log_sign":
            return features.log_sign(coords.grad, self.p, coords.widths)
        return features.raw(coords.grad)

    def layer_weights(self, weights: Weights, layer: int) -> Weights:
        """The weights of one cell, under the names of `cells`."""
        prefix = f"cell.{layer}."
        return {
            key.removeprefix(prefix): value
            for key, value in weights.items()
            if key.startswith(prefix)
        }

    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        """Features, stacked cells, head: see `UpdateRule.update`."""
        h = self.features(coords)
        function = CELLS[self.cell].function
        new_rows = []
        for layer, rows in enumerate(state["cell"].split(self.rows_per_layer, dim=-2)):
            h, rows = function(h, rows, self.layer_weights(weights, layer))
            new_rows.append(rows)
        output = affine(weights["head.w"], h, weights["head.b"]).squeeze(-2)
        cell = new_rows[0] if self.layers == 1 else torch.cat(new_rows, dim=-2)
        return self.scale * output, {"cell": cell}
