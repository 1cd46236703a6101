"""What a model costs: parameters and floating-point operations, from its config alone."""

from dataclasses import dataclass

import torch

from fromscratch.config.model import ModelConfig
from fromscratch.models.factory import build_model
from fromscratch.models.mechanism import forward_flops


@dataclass(frozen=True)
class ModelCosts:
    """Counts for one model; a multiply and an add are two operations."""

    parameters: int
    """All trained numbers; a tied head counts once."""
    forward_flops_per_token: int
    """Matrix products, with the mean number of positions that attention sees in a full sequence."""

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward: three times the forward pass (Kaplan et al. 2020, section 2.1)."""
        return 3 * self.forward_flops_per_token


def model_costs(config: ModelConfig) -> ModelCosts:
    """Counts on the meta device: exact, and no memory is taken for weights."""
    with torch.device("meta"):
        model = build_model(config)
    return ModelCosts(
        parameters=sum(p.numel() for p in model.parameters()),
        forward_flops_per_token=round(forward_flops(model, config.context_length)),
    )
