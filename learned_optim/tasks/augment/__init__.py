"""Augmentations: wrappers that take a family and give a family. They compose.

In a recipe, `augment` of a `[[tasks]]` entry is a list of tables, the innermost first:

    [[tasks]]
    family = "cnn"
    augment = [{name = "label_noise", fraction = 0.1}, {name = "reparametrise"}]
"""

from __future__ import annotations

from collections.abc import Mapping

from learned_optim.tasks.augment.base import Augmentation as Augmentation
from learned_optim.tasks.augment.noise import BatchSize, GradientNoise, LabelNoise
from learned_optim.tasks.augment.scales import FlipSigns, LossScale, Reparametrise
from learned_optim.tasks.augment.start import WarmStart

AUGMENTATIONS: Mapping[str, type[Augmentation]] = {
    augmentation.name: augmentation
    for augmentation in (
        Reparametrise,
        FlipSigns,
        LossScale,
        GradientNoise,
        BatchSize,
        LabelNoise,
        WarmStart,
    )
}
