"""Semi-supervised classification of a graph's nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split, Task


@dataclass(frozen=True)
class Graph(Task):
    """Cross entropy of the nodes whose label is known, by two graph convolutions.

    Kipf and Welling, "Semi-supervised classification with graph convolutional networks", 2017,
    equation 9. Paper / ours: citations, dropout, decay / a stochastic block model of each run's
    own, neither. The whole graph at every step: there is no noise.

    Parameters `layer0...`, `head...`; constants `adjacency` `(nodes, nodes)`, normalised,
    `features` `(nodes, inputs)`, `y` `(nodes,)`; minibatch `known` `(nodes,)`, 1 or 0.
    """

    nodes: int = 160
    groups: int = 4
    labelled: int = 10
    inputs: int = 24
    width: int = 16
    inside: float = 0.12
    between: float = 0.03

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Glorot, as the paper has it; features are a centre of the group and noise."""
        params = nets.dense_params(generator, "layer0", self.inputs, self.width, "glorot")
        params |= nets.dense_params(generator, "head", self.width, self.groups, "glorot")
        y = torch.arange(self.nodes) % self.groups
        chance = torch.where(y[:, None] == y, self.inside, self.between)
        upper = (torch.rand(chance.shape, generator=generator) < chance).triu(1).float()
        linked = upper + upper.mT + torch.eye(self.nodes)
        per_root = linked.sum(-1).rsqrt()
        centres = nets.normal(generator, (self.groups, self.inputs), 0.5)
        features = centres[y] + nets.normal(generator, (self.nodes, self.inputs))
        adjacency = per_root[:, None] * linked * per_root
        return params, {"adjacency": adjacency, "features": features, "y": y}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """The first nodes are known, the others are for the test."""
        known = (torch.arange(self.nodes) < self.labelled * self.groups).float()
        return {"known": known if split == "train" else 1 - known}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over the nodes that count."""
        x = batch["adjacency"] @ nets.dense(params, "layer0", batch["features"])
        logits = batch["adjacency"] @ nets.dense(params, "head", functional.relu(x))
        surprise = functional.cross_entropy(logits, batch["y"], reduction="none")
        return (surprise * batch["known"]).sum() / batch["known"].sum()
