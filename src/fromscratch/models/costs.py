"""What a model costs: parameters and floating-point operations, from its config alone."""

from dataclasses import dataclass, field

import torch
from torch import nn

from fromscratch.config.model import ModelConfig
from fromscratch.models.attention import CausalAttention
from fromscratch.models.factory import build_model, replace_head
from fromscratch.models.language_model import LanguageModel
from fromscratch.models.mechanism import flops_of_children, forward_flops


@dataclass(frozen=True)
class ModelCosts:
    """Counts for one model; a multiply and an add are two operations."""

    parameters: int
    """All trained numbers; a tied head counts once."""
    active_parameters: int
    """Those that a token uses: all, except in a mixture of experts."""
    forward_flops_per_token: int
    """Matrix products, with the mean number of positions that attention sees in a full sequence."""
    parameters_by_part: dict[str, int] = field(default_factory=dict)
    """The same parameters by part of the model, all layers together; a part whose parameters are another's has 0."""
    hoffmann_forward_flops_per_token: int | None = None
    """The count of Hoffmann et al. 2022, appendix F: also the embedding as a matrix product, the softmax, and every
    position of the context for every token. None for a model without attention, which that count does not cover."""

    auxiliary_flops_per_token: int = 0
    """Operations of a forward pass that training alone computes, such as those of multi-token prediction."""

    @property
    def six_n_flops_per_token(self) -> int:
        """Forward and backward as 6 operations per active parameter (Kaplan et al. 2020, section 2.1)."""
        return 6 * self.active_parameters

    @property
    def hoffmann_flops_per_token(self) -> int | None:
        """Forward and backward, the backward pass counted as two forward passes."""
        forward = self.hoffmann_forward_flops_per_token
        return None if forward is None else 3 * (forward + self.auxiliary_flops_per_token)

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward: three times the forward pass (Kaplan et al. 2020, section 2.1)."""
        return 3 * (self.forward_flops_per_token + self.auxiliary_flops_per_token)


def model_costs(config: ModelConfig, *, num_classes: int | None = None) -> ModelCosts:
    """Counts on the meta device: exact, and no memory is taken for weights.

    Args:
        num_classes: of a model with a head that scores classes; None is a language model.
    """
    with torch.device("meta"):
        model = build_model(config)
    if num_classes:
        replace_head(model, num_classes)
    parameters = sum(p.numel() for p in model.parameters())
    return ModelCosts(
        parameters=parameters,
        active_parameters=parameters - sum(getattr(module, "num_idle_parameters", 0) for module in model.modules()),
        forward_flops_per_token=round(forward_flops(model, config.context_length)),
        parameters_by_part=parameters_by_part(model),
        auxiliary_flops_per_token=round(auxiliary_flops(model, config.context_length)),
        hoffmann_forward_flops_per_token=hoffmann_forward_flops(model, config.context_length),
    )


def auxiliary_flops(model: LanguageModel, context_length: int) -> float:
    """Operations per token of a forward pass that training alone computes: those of modules with ``training_flops``."""
    modules = [module for module in model.modules() if hasattr(module, "training_flops")]
    return sum(module.training_flops(context_length, model.output_head) for module in modules)  # type: ignore[operator]


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Counts each parameter once, by the name of its module; the same module of all layers is one part."""
    counts: dict[str, int] = {}
    counted: set[nn.Parameter] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners = [word for word in name.split(".")[:-1] if not word.isdigit()]
        part = ".".join(owners[:2] if len(owners) < len(name.split(".")) - 1 else owners[:1])
        part = part or name
        counts[part] = counts.get(part, 0) + (0 if parameter in counted else parameter.numel())
        counted.add(parameter)
    return counts


def hoffmann_forward_flops(model: LanguageModel, context_length: int) -> int | None:
    """Operations of one forward pass per token, as Hoffmann et al. 2022 count them in appendix F; None: no attention.

    Differs from ``forward_flops`` in three terms: 2 V D for the embedding; in each layer 4 T D instead of the
    visible positions only; and 3 H T for the softmax.
    """
    for_training = [module for module in model.modules() if hasattr(module, "training_flops")]
    in_training = {inner for module in for_training for inner in module.modules()}
    layers = [module for module in model.modules() if isinstance(module, CausalAttention) and module not in in_training]
    if not layers:
        return None
    total = forward_flops(model, context_length)
    table = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    total += 2 * table.weight.numel()
    for layer in layers:
        scores = forward_flops(layer, context_length) - flops_of_children(layer, context_length)
        total += 4 * context_length * layer.output.in_features - scores + 3 * layer.num_heads * context_length
    return round(total)
