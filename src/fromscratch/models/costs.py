"""What a model costs: parameters and floating-point operations, from its config alone."""

from dataclasses import dataclass

import torch

from fromscratch.config.model import ModelConfig
from fromscratch.models.factory import build_gpt


@dataclass(frozen=True)
class ModelCosts:
    """Counts for one model; a multiply and an add are two operations."""

    parameters: int
    """All trained numbers; a tied head counts once."""
    matrix_parameters: int
    """Those that take part in a matrix product per token: all but the embedding tables looked up."""
    attention_flops_per_token: int
    """Forward operations of scores and weighted means per token, averaged over the causal half."""

    @property
    def forward_flops_per_token(self) -> int:
        return 2 * self.matrix_parameters + self.attention_flops_per_token

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward: three times the forward pass (Kaplan et al. 2020, section 2.1)."""
        return 3 * self.forward_flops_per_token


def model_costs(config: ModelConfig) -> ModelCosts:
    """Counts on the meta device: exact, and no memory is taken for weights."""
    with torch.device("meta"):
        model = build_gpt(config)
    parameters = sum(p.numel() for p in model.parameters())
    looked_up = sum(p.numel() for p in model.position.parameters())
    if not config.tied_head:
        looked_up += model.token_embedding.weight.numel()
    causal_half_of_scores_and_means = 2 * config.context_length * config.embedding_dim
    return ModelCosts(
        parameters=parameters,
        matrix_parameters=parameters - looked_up,
        attention_flops_per_token=config.num_layers * causal_half_of_scores_and_means,
    )
