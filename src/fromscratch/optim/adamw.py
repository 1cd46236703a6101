"""AdamW over a model's named parameters, with a choice of what decays."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fromscratch.optim.cautious import decay_cautiously

FUSED_DEVICES = {"cuda", "cpu", "mps"}  # where torch has a single-kernel AdamW


def build_adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    decay: str,
    beta1: float,
    beta2: float,
    eps: float,
    cautious: bool = False,
) -> torch.optim.Optimizer:
    """torch's AdamW, fused where the device has it.

    ``decay`` is ``"matrices"`` (parameters of two dimensions or more) or ``"all"``; ``cautious`` is explained in
    ``cautious.py``.
    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """
    groups = decay_groups([parameter for _, parameter in named_parameters], weight_decay, decay)
    optimizer = torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(beta1, beta2),
        eps=eps,
        fused=all(p.device.type in FUSED_DEVICES for group in groups for p in group["params"]),
    )
    if cautious:
        decay_cautiously(optimizer)
    return optimizer


def decay_groups(parameters: list[nn.Parameter], weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """Parameters that decay, and those that do not: groups for an optimiser, none of them empty."""
    decaying = [p for p in parameters if decay == "all" or p.dim() >= 2]
    others = [p for p in parameters if decay != "all" and p.dim() < 2]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
