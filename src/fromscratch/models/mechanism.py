"""What every mechanism receives, and what it reports.

A mechanism is an ``nn.Module`` that fills a slot. It is called in the same way in all models, with its own settings
by keyword:

    position, head, residual         Mechanism(sizes, **settings)
    norm, attention, feedforward     Mechanism(sizes, layer, **settings)
    multi_token                      Mechanism(sizes, slots, **settings)

``layer`` is the index of the block; the final norm's is ``num_layers``. ``forward`` takes x [B, T, D]. That of
``position`` and ``attention`` also takes positions [B or 1, T]: the place of each token in its own text, negative in
the padding that a text may have on its left. A mechanism has two further methods:

    reset(init)                      sets every parameter and buffer that it or its submodules own
    forward_flops(context_length)    needed where it owns parameters, or computes more than its submodules do

A feed-forward network with losses of its own has ``forward_with_auxiliary(x)`` too, which training calls: it returns
the output and named ``Auxiliary`` losses.

A position mechanism may have an attribute ``in_attention``: what attention does with positions, see ``positions.py``.

Needs torch alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

Maker = Callable[..., nn.Module]
ScoreBias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What is added to a score of attention: a function of head, query position and key position."""


class Auxiliary(NamedTuple):
    """A loss beside the cross-entropy, or a measure."""

    values: Tensor
    """One per sequence [B], so that no division of a batch changes them."""
    coefficient: float
    """Its weight in what training minimises; 0 only measures."""


Auxiliaries = dict[str, Auxiliary]
"""By the name that the metrics show."""


def mean_over_layers(layers: list[Auxiliaries]) -> Auxiliaries:
    """The mean of each auxiliary loss over the layers that have it."""
    names = dict.fromkeys(name for layer in layers for name in layer)
    found = {name: [layer[name] for layer in layers if name in layer] for name in names}
    return {
        name: Auxiliary(torch.stack([one.values for one in same]).mean(0), same[0].coefficient)
        for name, same in found.items()
    }


@dataclass(frozen=True)
class Sizes:
    """The numbers and switches of a ``[model]`` table that belong to no slot."""

    vocab_size: int
    """Number of token ids, V."""
    context_length: int
    """Maximum number of tokens in one sequence."""
    num_layers: int
    num_heads: int
    embedding_dim: int
    """Width of the residual stream, D."""
    dropout: float
    """Probability for embeddings, attention and both residual additions of every block."""
    attention_bias: bool
    """Whether the query, key and value projections have a bias."""
    tied_head: bool
    """Whether the head's matrix is the token embedding's (Press and Wolf 2017)."""
    residual_dtype: str | None = None
    """``bf16`` keeps the residual stream between layers in it; None leaves it in the embedding's type."""
    head_dim: int | None = None
    """Channels of each attention head; None divides the width among the heads."""

    @property
    def head_channels(self) -> int:
        """Channels of each attention head, C."""
        return self.head_dim or self.embedding_dim // self.num_heads


@dataclass(frozen=True)
class Slots:
    """What makes the module of each slot, its own settings filled in."""

    position: Maker
    norm: Maker
    attention: Maker
    feedforward: Maker
    head: Maker
    residual: Maker | None = None
    multi_token: Maker | None = None


class Init(Protocol):
    """A way to set first weights, which draws from one seeded generator in the order of the calls."""

    def linear(self, layer: nn.Linear, *, residual: bool = False) -> None:
        """Sets weight and bias. ``residual``: the last layer of a branch that is added to the residual stream."""

    def matrix(self, parameter: Tensor, *, fan_in: int, residual: bool = False) -> None:
        """Sets the weights of a linear map from ``fan_in`` inputs, in whatever layout."""

    def bias(self, parameter: Tensor, *, fan_in: int) -> None:
        """Sets what is added to a linear map from ``fan_in`` inputs."""

    def embedding(self, parameter: Tensor) -> None:
        """Sets a table of vectors that are looked up."""

    def finish(self) -> None:
        """Draws what was left to the end; to be called once, after all others."""


def forward_flops(module: nn.Module, context_length: int) -> float:
    """Floating-point operations of one forward pass per token, a multiply and an add counted as two.

    A mean over the positions of a full sequence. Biases, norms and activations are not counted.

    Raises:
        TypeError: a module owns parameters and does not say what it computes with them.
    """
    if hasattr(module, "forward_flops"):
        return module.forward_flops(context_length)  # type: ignore[operator]
    if isinstance(module, nn.Linear):
        return 2 * module.weight.numel()
    if not isinstance(module, nn.Embedding) and any(True for _ in module.parameters(recurse=False)):
        raise TypeError(f"{type(module).__name__} owns parameters and must have forward_flops(context_length)")
    return flops_of_children(module, context_length)


def flops_of_children(module: nn.Module, context_length: int) -> float:
    """What the submodules compute per token, each once."""
    return sum(forward_flops(child, context_length) for child in module.children())
