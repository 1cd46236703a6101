"""How weights begin: each module sets its own parameters (``reset``) with the methods of one of these classes.

Every parameter is drawn from one seeded generator, in the order of the modules, on the CPU. So the same
seed gives the same weights on every device, and drawing them disturbs no other random stream. What the
methods are for stands in ``mechanism.Init``.
"""

import math

import torch
from torch import Tensor, nn


class GPT2Init:
    """Normal(0, std) matrices, zero biases; residual projections divided by sqrt(2 x blocks).

    Source: Radford et al. 2019, section 2.3 (residual scaling), and OpenAI's released code (0.02).
    """

    def __init__(self, num_layers: int, generator: torch.Generator, *, std: float) -> None:
        self._generator = generator
        self._std = std
        self._residual_scale = 1.0 / math.sqrt(2 * num_layers)

    def linear(self, layer: nn.Linear, *, residual: bool = False) -> None:
        self.matrix(layer.weight, fan_in=layer.in_features, residual=residual)
        if layer.bias is not None:
            self.bias(layer.bias, fan_in=layer.in_features)

    def matrix(self, parameter: Tensor, *, fan_in: int, residual: bool = False) -> None:
        _normal(parameter, self._std * (self._residual_scale if residual else 1.0), self._generator)

    def bias(self, parameter: Tensor, *, fan_in: int) -> None:
        nn.init.zeros_(parameter)

    def embedding(self, parameter: Tensor) -> None:
        _normal(parameter, self._std, self._generator)

    def finish(self) -> None:
        """Nothing was left to the end."""


class TorchInit:
    """The framework's own defaults: uniform(+-1/sqrt(fan_in)) linear layers, Normal(0, 1) embeddings.

    The default, as in the code of introductory books. Embeddings are drawn last, so that a tied matrix
    ends as an embedding, as it does there.
    """

    def __init__(self, num_layers: int, generator: torch.Generator) -> None:
        self._generator = generator
        self._embeddings: list[Tensor] = []

    def linear(self, layer: nn.Linear, *, residual: bool = False) -> None:
        self.matrix(layer.weight, fan_in=layer.in_features)
        if layer.bias is not None:
            self.bias(layer.bias, fan_in=layer.in_features)

    def matrix(self, parameter: Tensor, *, fan_in: int, residual: bool = False) -> None:
        bound = 1.0 / math.sqrt(fan_in)
        _copy(torch.empty(parameter.shape).uniform_(-bound, bound, generator=self._generator), parameter)

    def bias(self, parameter: Tensor, *, fan_in: int) -> None:
        self.matrix(parameter, fan_in=fan_in)

    def embedding(self, parameter: Tensor) -> None:
        self._embeddings.append(parameter)

    def finish(self) -> None:
        for parameter in self._embeddings:
            _normal(parameter, 1.0, self._generator)


def _normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    _copy(torch.empty(parameter.shape).normal_(0.0, std, generator=generator), parameter)


@torch.no_grad()
def _copy(drawn: Tensor, parameter: Tensor) -> None:
    parameter.copy_(drawn)
