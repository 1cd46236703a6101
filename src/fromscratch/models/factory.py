"""From a ``[model]`` table to a model: fills the slots, counts, and draws the first weights."""

from functools import partial

import torch

from fromscratch.config.model import ModelConfig
from fromscratch.models.gpt import GPT
from fromscratch.randomness import derive_seed


def build_gpt(config: ModelConfig) -> GPT:
    """The model on torch's current default device (``with torch.device("meta")`` allocates nothing).

    Its weights are whatever the memory held; ``initialise`` or a checkpoint must fill them.

    Raises:
        ValueError: the vocabulary size is still unknown.
    """
    if config.vocab_size is None:
        raise ValueError("the model's vocab_size is not known yet; resolve the run file first")
    embedding_dim = config.embedding_dim
    return GPT(
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        embedding_dim=embedding_dim,
        num_layers=config.num_layers,
        dropout=config.dropout,
        tied_head=config.tied_head,
        position=partial(config.position.maker(), embedding_dim=embedding_dim, context_length=config.context_length),
        norm=partial(config.norm.maker(), embedding_dim=embedding_dim),
        attention=partial(
            config.attention.maker(),
            embedding_dim=embedding_dim,
            num_heads=config.num_heads,
            bias=config.attention_bias,
            dropout=config.dropout,
        ),
        feedforward=partial(config.feedforward.maker(), embedding_dim=embedding_dim),
        head=partial(config.head.maker(), embedding_dim=embedding_dim, vocab_size=config.vocab_size),
    )


def build_empty(config: ModelConfig, device: torch.device | str) -> GPT:
    """The model on a device with unset weights, without the time that throw-away random ones take."""
    with torch.device("meta"):
        model = build_gpt(config)
    model.to_empty(device=device)
    model.tie_head()
    return model


def initialise(model: GPT, config: ModelConfig, *, seed: int) -> None:
    """Draws the first weights. The same seed gives the same weights on every device."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "initial-weights"))
    config.init.build(model, generator)
