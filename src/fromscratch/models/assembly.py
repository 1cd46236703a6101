"""A GPT put together from what fills its slots: the one place where slots meet sizes.

``factory.py`` calls it with the kinds of a run file, a published model with the classes it carries.
Needs torch alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from .gpt import GPT

Maker = Callable[..., nn.Module]


@dataclass(frozen=True)
class Slots:
    """What makes the module of each slot, its own settings filled in."""

    position: Maker
    norm: Maker
    attention: Maker
    feedforward: Maker
    head: Maker


def assemble_gpt(  # noqa: PLR0913
    slots: Slots,
    *,
    vocab_size: int,
    context_length: int,
    num_layers: int,
    num_heads: int,
    embedding_dim: int,
    dropout: float,
    attention_bias: bool,
    tied_head: bool,
    gpt: type[GPT] = GPT,
) -> GPT:
    """The model on torch's current default device, its weights not yet set to anything of use."""
    return gpt(
        vocab_size=vocab_size,
        context_length=context_length,
        embedding_dim=embedding_dim,
        num_layers=num_layers,
        dropout=dropout,
        tied_head=tied_head,
        position=partial(slots.position, embedding_dim=embedding_dim, context_length=context_length),
        norm=partial(slots.norm, embedding_dim=embedding_dim),
        attention=partial(
            slots.attention, embedding_dim=embedding_dim, num_heads=num_heads, bias=attention_bias, dropout=dropout
        ),
        feedforward=partial(slots.feedforward, embedding_dim=embedding_dim),
        head=partial(slots.head, embedding_dim=embedding_dim, vocab_size=vocab_size),
    )
