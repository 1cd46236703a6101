"""From a ``[model]`` table to a model: fills the slots, and draws the first weights."""

from dataclasses import fields
from typing import Any, overload

import torch
from torch.overrides import TorchFunctionMode

from fromscratch.config.base import import_target
from fromscratch.config.model import GPTConfig, ModelConfig
from fromscratch.config.recurrent import RecurrentConfig
from fromscratch.errors import UsageError
from fromscratch.models.gpt import GPT
from fromscratch.models.language_model import LanguageModel
from fromscratch.models.mechanism import Sizes, Slots
from fromscratch.models.recurrent import LAYERS, Recurrent
from fromscratch.randomness import derive_seed

SLOT_NAMES = tuple(field.name for field in fields(Slots))


def build_model(config: ModelConfig) -> LanguageModel:
    """Builds the model on torch's current default device (``with torch.device("meta")`` allocates nothing).

    Its weights are not set: ``initialise`` or a checkpoint must fill them.

    Raises:
        ValueError: the vocabulary size is still unknown.
    """
    if config.vocab_size is None:
        raise ValueError("the model's vocab_size is not known yet; resolve the run file first")
    with _NoInit():
        built: LanguageModel = import_target(config.builds)(config)
    return built


class _NoInit(TorchFunctionMode):
    """Torch's modules leave their parameters unset. On the meta device, setting them loads the compiler (2 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_gpt(config: GPTConfig) -> GPT:
    """Builds the kind ``gpt``: fills its slots."""
    return GPT(
        Sizes(**{field.name: getattr(config, field.name) for field in fields(Sizes)}),
        Slots(**{name: slot.maker() for name in SLOT_NAMES if (slot := getattr(config, name)) is not None}),
    )


def build_recurrent(config: RecurrentConfig) -> Recurrent:
    """Builds the kinds ``lstm``, ``gru`` and ``rnn``."""
    assert config.vocab_size is not None
    return Recurrent(
        LAYERS[config.kind][config.implementation],
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        num_layers=config.num_layers,
        hidden_dim=config.hidden_dim,
        embedding_dim=config.embedding_dim,
        dropout=config.dropout,
    )


@overload
def build_empty(config: GPTConfig, device: torch.device | str) -> GPT: ...


@overload
def build_empty(config: ModelConfig, device: torch.device | str) -> LanguageModel: ...


def build_empty(config: ModelConfig, device: torch.device | str) -> LanguageModel:
    """Builds the model on a device with unset weights, without drawing random ones."""
    with torch.device("meta"):
        model = build_model(config)
    model.to_empty(device=device)
    model.tie_parameters()
    return model


def replace_head(model: LanguageModel, num_classes: int) -> None:
    """Turns a language model into a classifier, on whatever device it is; the weights of its head are unset.

    Raises:
        UsageError: its kind has no such head.
    """
    try:
        with _NoInit(), torch.device(next(model.parameters()).device):
            model.replace_head(num_classes)
        model.num_classes = num_classes
    except NotImplementedError:
        raise UsageError(f"a model of kind {type(model).__name__} cannot classify texts") from None


def initialise(model: LanguageModel, config: ModelConfig, *, seed: int) -> None:
    """Draws the first weights. The same seed gives the same weights on every device."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "initial-weights"))
    init = config.init.build(model.num_layers, generator)
    model.reset(init)
    init.finish()
