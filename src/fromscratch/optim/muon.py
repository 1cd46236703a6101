"""Muon for the matrices between embedding and head, AdamW for every other parameter: two optimisers as one.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
Scalable for LLM Training", section 2 (weight decay, the rate's scale).
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fromscratch.optim.adamw import build_adamw
from fromscratch.optim.cautious import decay_cautiously
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.optim.parts import ParameterPart

NEWTON_SCHULZ_STEPS = 5
GPT2_EMBEDDINGS = {"wte", "wpe"}
HEADS = {"head", "lm_head", "embed_out", "score"}
"""Words in the names of embeddings and heads, ours and those of transformers' models. Others contain "embed"."""


class DividedMuon(torch.optim.Muon):
    """torch's Muon over matrices whose rows several processes divide (``ParameterPart``).

    Momentum is divided too. The update is gathered in bf16, the type in which torch orthogonalises it; every process
    orthogonalises the whole and applies its own rows.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all matrices that have a gradient. All processes call it together."""
        for group in self.param_groups:
            for part in group["params"]:
                if part.grad is None:
                    continue
                momentum = self.state[part].setdefault("momentum_buffer", torch.zeros_like(part.grad))
                momentum.lerp_(part.grad, 1.0 - group["momentum"])
                update = part.grad.lerp(momentum, group["momentum"])
                part.mul_(1.0 - group["lr"] * group["weight_decay"])
                part.add_(part.rows_of(_orthogonal_step(part.whole_of(update.bfloat16()).float(), group)))


def _orthogonal_step(update: Tensor, group: dict[str, Any]) -> Tensor:
    """What torch's Muon adds to a matrix for an update [rows, columns]: the step from a matrix of zeros."""
    step = nn.Parameter(torch.zeros_like(update))
    step.grad = update
    settings = {key: group[key] for key in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
    torch.optim.Muon([step], momentum=0.0, nesterov=False, weight_decay=0.0, **settings).step()
    return step.detach()


def build_muon(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    adamw_learning_rate: float,
    embedding_learning_rate: float | None,
    adamw_weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    cautious: bool = False,
) -> CompositeOptimizer:
    """``torch.optim.Muon`` over hidden matrices, and AdamW with rates of its own over the rest."""
    hidden, embeddings, others = [], [], []
    for name, parameter in named_parameters:
        words = set(name.split("."))
        if words & HEADS or parameter.dim() != 2:
            others.append((name, parameter))
        elif words & GPT2_EMBEDDINGS or any("embed" in word for word in words):
            embeddings.append((name, parameter))
        else:
            hidden.append(parameter)
    adamw = partial(
        build_adamw,
        weight_decay=adamw_weight_decay,
        decay="matrices",
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        cautious=cautious,
    )
    rates = ((embeddings, embedding_learning_rate or adamw_learning_rate), (others, adamw_learning_rate))
    parts = [adamw(group, learning_rate=rate) for group, rate in rates if group]
    if not hidden:
        return CompositeOptimizer(*parts)
    kind = DividedMuon if isinstance(hidden[0], ParameterPart) else torch.optim.Muon
    muon = kind(
        hidden,
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        ns_steps=NEWTON_SCHULZ_STEPS,
        adjust_lr_fn="original",
    )
    if cautious:
        decay_cautiously(muon)
    return CompositeOptimizer(muon, *parts)
