"""Torch's Muon on hidden matrices and AdamW on all others, as one optimizer with one rate.

As the authors of Muon use it (Jordan et al., "Muon: an optimizer for hidden layers in neural
networks", 2024); steps of matrices have the root mean square of AdamW's, so that one rate serves
both (Liu et al., "Muon is scalable for LLM training", 2025, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.general.grids import muon_takes


class MuonAndAdamW(torch.optim.Optimizer):
    """Schedulers of the rate act on both, checkpoints hold both.

    Args:
        params: by name, in the order of the network, as `muon_takes` wants them.
        lr: of both.
        weight_decay: decoupled, of both.
        foreach: of AdamW, see there.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        lr: float,
        weight_decay: float = 0.01,
        *,
        foreach: bool | None = None,
    ) -> None:
        taken = muon_takes({name: p.shape for name, p in params.items()})
        hidden = [p for name, p in params.items() if name in taken]
        others = [p for name, p in params.items() if name not in taken]
        muon = partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
        kinds = ((muon, hidden), (partial(torch.optim.AdamW, foreach=foreach), others))
        kinds = [(kind, tensors) for kind, tensors in kinds if tensors]
        super().__init__([{"params": tensors} for _, tensors in kinds], {"lr": lr})
        self.parts: list[torch.optim.Optimizer] = [
            kind(tensors, lr, weight_decay=weight_decay) for kind, tensors in kinds
        ]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both, at the rates that the groups have now; closures are not called."""
        for group, part in zip(self.param_groups, self.parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Of both, and the rates of the next step."""
        rates = [group["lr"] for group in self.param_groups]
        return {"parts": [part.state_dict() for part in self.parts], "rates": rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of both, and their rates."""
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)
        for group, rate in zip(self.param_groups, state_dict["rates"], strict=True):
            group["lr"] = rate
