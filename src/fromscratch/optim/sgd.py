"""Stochastic gradient descent with momentum."""

from collections.abc import Iterable

import torch
from torch import nn


def build_sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> torch.optim.SGD:
    """torch's SGD over all parameters. Source: Sutskever et al. 2013, equations 3 and 4."""
    parameters = [parameter for _, parameter in named_parameters]
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
