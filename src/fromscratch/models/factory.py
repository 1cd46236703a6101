"""From a ``[model]`` table to a model: fills the slots, counts, and draws the first weights."""

from dataclasses import fields

import torch

from fromscratch.config.model import ModelConfig
from fromscratch.models.assembly import Slots, assemble_gpt
from fromscratch.models.gpt import GPT
from fromscratch.randomness import derive_seed

SLOT_NAMES = tuple(field.name for field in fields(Slots))
SIZE_NAMES = (
    "vocab_size",
    "context_length",
    "num_layers",
    "num_heads",
    "embedding_dim",
    "dropout",
    "attention_bias",
    "tied_head",
)
"""What ``assemble_gpt`` needs beside the slots, under the names of the ``[model]`` table."""


def build_gpt(config: ModelConfig) -> GPT:
    """The model on torch's current default device (``with torch.device("meta")`` allocates nothing).

    Its weights are whatever the memory held; ``initialise`` or a checkpoint must fill them.

    Raises:
        ValueError: the vocabulary size is still unknown.
    """
    if config.vocab_size is None:
        raise ValueError("the model's vocab_size is not known yet; resolve the run file first")
    return assemble_gpt(
        Slots(**{name: getattr(config, name).maker() for name in SLOT_NAMES}),
        **{name: getattr(config, name) for name in SIZE_NAMES},
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
