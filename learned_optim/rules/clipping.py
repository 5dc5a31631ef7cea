"""What a gradient may count for in the momentum, beside the ones before it.

Where a network has learned nearly all of its examples, gradients are small but for the few that it
has not, and one of those is many times as large as the ones before. In a momentum of a few steps it
is then all there is, so that a step of full length goes its way alone. So it enters no larger than
a multiple of the root mean square before it (gradient clipping: Pascanu et al., "On the difficulty
of training recurrent neural networks", 2013; by the norms before it, tensor by tensor: Wang et al.,
"AdaGC: enhancing LLM pretraining stability via adaptive gradient clipping", 2025). Deviation from
both: the second moment sees all of it. What that remembers of a rare gradient keeps the steps after
it short, which is for the better: clipped there alone, what can be fitted ends higher
(docs/diary_default.md). And it follows whatever comes, where a mean of clipped squares would fall
behind gradients that come rarely or have grown for good.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from learned_optim.rules.base import Weights
from learned_optim.rules.hand import constant
from learned_optim.rules.ranges import tiny

# Steps whose gradients are not clipped: they grow at first, and little is known of them.
FIRST = 10.0
# Mean square of the momentum, over that of the gradients, below which none has come for so long
# (some seventeen steps) that the next one is not rare but the first: what is used now and then,
# such as an expert of a mixture, would starve otherwise.
FAINT = 1e-7


def squares_before(means: Mapping[str, Tensor], beta2: Tensor, step: Tensor) -> Tensor:
    """The running mean of the gradients' squares before this one, `(..., T)`.

    That with it is at least a t-th of the gradient's own at step t, so for long it would not show
    what has grown.

    Args:
        means: over the tensor's coordinates; of them `v`, as it is stored.
        beta2: its decay.
        step: number of the step.
    """
    return means["v"] / (1 - beta2 ** (step - 1)).clamp_min(1e-6)


def clipping(means: Mapping[str, Tensor], beta2: Tensor, step: Tensor, weights: Weights) -> Tensor:
    """The factor on the gradient that the momentum sees, `(..., T)`, at most 1.

    Args:
        means: see `squares_before`; and `g2`, of this gradient's squares, and `m2`, of those of the
            momentum before it.
        beta2: likewise.
        step: likewise.
        weights: the constants.
    """
    before = squares_before(means, beta2, step)
    most = (2 * constant(weights, "log_clip")).exp() * before
    ratio = (most / means["g2"].clamp_min(tiny(before))).clamp(tiny(before), 1)
    unseen = (before <= tiny(before)) | (means["m2"] <= FAINT * before)
    return torch.where((step <= FIRST) | unseen, 1, ratio).sqrt()
