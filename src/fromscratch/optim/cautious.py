"""Cautious weight decay: a weight decays only where the update does not move it away from zero.

Source: Chen et al. 2025, "Cautious Weight Decay": x <- x - lr * (u + decay * [u * x >= 0] * x), for any optimiser's
update u. The update is what a step has changed, so one rule serves every optimiser of torch.
"""

from typing import Any

import torch
from torch import Tensor

CAUTIOUS = "cautious_decay"


def decay_cautiously(optimizer: torch.optim.Optimizer) -> None:
    """Turns the weight decay of every group into cautious decay.

    A step then holds a copy of the weights that decay. A step that is held back on the device (``found_inf``) decays
    nothing.
    """
    for group in optimizer.param_groups:
        group[CAUTIOUS], group["weight_decay"] = group["weight_decay"], 0.0
    before: dict[Tensor, Tensor] = {}
    optimizer.register_step_pre_hook(lambda *_: before.update(_copies(optimizer)))
    optimizer.register_step_post_hook(lambda *_: _decay(optimizer, before))


def _decaying(group: dict[str, Any]) -> list[Tensor]:
    return [weight for weight in group["params"] if weight.grad is not None] if group[CAUTIOUS] else []


def _copies(optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    return {weight: weight.detach().clone() for group in optimizer.param_groups for weight in _decaying(group)}


@torch.no_grad()
def _decay(optimizer: torch.optim.Optimizer, before: dict[Tensor, Tensor]) -> None:
    hold: Tensor | None = getattr(optimizer, "found_inf", None)
    for group in optimizer.param_groups:
        for weight in _decaying(group):
            old = before.pop(weight)
            decays = (old - weight).mul_(old).ge_(0.0)
            if hold is not None:
                decays.mul_(1.0 - hold)
            weight.addcmul_(decays, old, value=-group["lr"] * group[CAUTIOUS])
