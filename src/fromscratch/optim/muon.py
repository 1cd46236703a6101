"""Muon for the matrices between embedding and head, AdamW for every other parameter: two optimisers as one.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
Scalable for LLM Training", section 2 (weight decay, the rate's scale).
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from fromscratch.optim.adamw import build_adamw
from fromscratch.optim.cautious import decay_cautiously
from fromscratch.optim.composite import CompositeOptimizer

NEWTON_SCHULZ_STEPS = 5
GPT2_EMBEDDINGS = {"wte", "wpe"}
HEADS = {"head", "lm_head", "embed_out", "score"}
"""Words in the names of embeddings and heads, ours and those of transformers' models. Others contain "embed"."""


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
    muon = torch.optim.Muon(
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
