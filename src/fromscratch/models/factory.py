"""From a ``[model]`` table to a model: fills the slots, and draws the first weights."""

from dataclasses import fields

import torch

from fromscratch.config.model import ModelConfig
from fromscratch.models.gpt import GPT
from fromscratch.models.mechanism import Sizes, Slots
from fromscratch.randomness import derive_seed

SLOT_NAMES = tuple(field.name for field in fields(Slots))


def build_gpt(config: ModelConfig) -> GPT:
    """The model on torch's current default device (``with torch.device("meta")`` allocates nothing).

    Its weights are whatever the memory held; ``initialise`` or a checkpoint must fill them.

    Raises:
        ValueError: the vocabulary size is still unknown.
    """
    if config.vocab_size is None:
        raise ValueError("the model's vocab_size is not known yet; resolve the run file first")
    return GPT(
        Sizes(**{field.name: getattr(config, field.name) for field in fields(Sizes)}),
        Slots(**{name: getattr(config, name).maker() for name in SLOT_NAMES}),
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
    init = config.init.build(model.sizes, generator)
    model.reset(init)
    init.finish()
