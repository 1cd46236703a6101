"""A second kind of optimiser, for tests alone: AdamW for matrices, SGD with momentum for the rest."""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from fromscratch.config.base import Slot
from fromscratch.optim.composite import CompositeOptimizer


class ToyComposite(Slot):
    """Two optimisers as one."""

    builds: ClassVar[str] = "tests.optim.toy_composite:build"
    kind: Literal["toy-composite"] = "toy-composite"
    learning_rate: float = Field(default=0.01, gt=0.0)
    """Of the matrices."""
    other_learning_rate: float = Field(default=0.1, gt=0.0)


def build(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float, other_learning_rate: float
) -> CompositeOptimizer:
    """Divides the parameters by their dimensions."""
    parameters = [parameter for _, parameter in named_parameters]
    matrices, others = ([p for p in parameters if (p.dim() >= 2) == wanted] for wanted in (True, False))
    return CompositeOptimizer(
        torch.optim.AdamW(matrices, lr=learning_rate, fused=matrices[0].device.type != "meta"),
        torch.optim.SGD(others, lr=other_learning_rate, momentum=0.9),
    )
