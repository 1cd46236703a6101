"""Lion: every weight moves by the learning rate, in the direction of the sign of an average of gradients.

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fromscratch.optim.adamw import decay_groups
from fromscratch.optim.cautious import decay_cautiously


class Lion(torch.optim.Optimizer):
    """Keeps one momentum per weight, half of AdamW's state."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all weights that have a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                direction = momentum.lerp(parameter.grad, 1.0 - beta1).sign_()
                if group["weight_decay"]:
                    parameter.sub_(parameter * (group["lr"] * group["weight_decay"]))
                parameter.sub_(direction, alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1.0 - beta2)


def build_lion(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    decay: str,
    cautious: bool = False,
    beta1: float,
    beta2: float,
) -> Lion:
    """Lion over the parameters; ``decay`` and ``cautious`` as for AdamW."""
    groups = decay_groups([parameter for _, parameter in named_parameters], weight_decay, decay)
    optimizer = Lion(groups, lr=learning_rate, betas=(beta1, beta2))
    if cautious:
        decay_cautiously(optimizer)
    return optimizer
