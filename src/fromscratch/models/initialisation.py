"""How weights begin. Every parameter is drawn from one seeded generator, in a fixed order, on the CPU.

So the same seed gives the same weights on every device, and drawing them disturbs no other random
stream.
"""

import math

import torch
from torch import Tensor, nn

RESIDUAL_PROJECTION = "output"  # the module name of the last linear layer of each branch of a block


def initialise_gpt2(model: nn.Module, generator: torch.Generator, *, std: float) -> None:
    """Normal(0, std) matrices, zero biases; residual projections divided by sqrt(2 x blocks).

    Source: Radford et al. 2019, section 2.3 (residual scaling), and OpenAI's released code (0.02).
    """
    num_blocks = sum(1 for name, _ in model.named_modules() if name.endswith(".attention"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            is_residual = name.rpartition(".")[2] == RESIDUAL_PROJECTION
            scale = 1.0 / math.sqrt(2 * num_blocks) if is_residual else 1.0
            _normal(module.weight, std * scale, generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()  # ones and zeros, no chance involved


def initialise_torch(model: nn.Module, generator: torch.Generator) -> None:
    """The framework's own defaults: uniform(+-1/sqrt(fan_in)) linear layers, Normal(0, 1) embeddings.

    This is what a model gets when nobody chooses, as in the code of introductory books. A tied head
    shares the embedding's Normal(0, 1) matrix, as it does there.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.in_features)
            _uniform(module.weight, bound, generator)
            if module.bias is not None:
                _uniform(module.bias, bound, generator)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for module in model.modules():  # after the linear layers, so that a tied matrix ends as an embedding
        if isinstance(module, nn.Embedding):
            _normal(module.weight, 1.0, generator)


@torch.no_grad()
def _normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


@torch.no_grad()
def _uniform(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
