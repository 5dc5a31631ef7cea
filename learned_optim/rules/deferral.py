"""Part of each step is taken at once, the rest dealt out over the steps to come.

Without noise in the way, a step is best taken at once; amid noise, the mean of many steps is worth
more than each of them, but nobody knows how many until the training is over. So a share of each
step waits with what is owed of the ones before, of which a part falls due at every step: the
memory may grow with the training.

In other words: let z move by the whole steps and let x be a weighted mean of all z so far, as
Polyak and Juditsky average iterates ("Acceleration of stochastic approximation by averaging",
1992). Then the parameters are the mix y = (1 - share) z + share x, at which Schedule-Free methods
take their gradients (Defazio et al., "The road less scheduled", 2024); there users are handed x in
the end, which asks for a call before every evaluation, and here it is y throughout. What is owed is
z - x, and a step needs no more than that: whoever changes parameters by hand changes z and x along.
"""

from __future__ import annotations

import torch
from torch import Tensor


def defer(step: Tensor, owed: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """What is taken now, and what is owed then, `(..., N)` each.

    What is taken is no longer than the longest step so far, if `due` is 1 at the first step and
    falls no faster than as one over time.

    Args:
        step: the whole step of now, `(..., N)`.
        owed: of the steps before, `(..., N)`; zero before the first.
        terms: `(..., 2, N)` or `(..., 2, 1)`: the share of a step that waits, and the part of what
            is owed that falls due.
    """
    share, due = terms.unbind(-2)
    owed = owed + step
    return torch.lerp(step, due * owed, share), (1 - due) * owed
