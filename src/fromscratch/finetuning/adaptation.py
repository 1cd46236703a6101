"""Changes a model for fine-tuning before its weights are set: low-rank additions, a head for classes, frozen weights.

LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models") is the package ``peft``'s. It works on
every model made of linear layers. Its first weights come from a stream of the run's seed.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fromscratch.config.tune import Classify, LoRA, Tuning
from fromscratch.errors import UsageError
from fromscratch.formats.lora import BASE_LAYER, DOWN, UP
from fromscratch.formats.weights import fill, first_head_weights
from fromscratch.models.factory import replace_head
from fromscratch.models.language_model import LanguageModel
from fromscratch.randomness import derive_seed

INJECTED_KINDS = ("Linear", "Conv1D")
"""Classes of linear layers; transformers' GPT-2 has the second."""


def adapt(model: LanguageModel, tune: Tuning) -> None:
    """Changes the modules of a model in place, on whatever device it is. Raises UsageError without ``peft``."""
    if tune.lora is not None:
        _inject_lora(model, tune.lora)
    if isinstance(tune, Classify):
        replace_head(model, len(tune.classes))
        _freeze(model, tune.train)


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Returns the parameters that are not frozen, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def set_adapted_weights(model: LanguageModel, base: dict[str, Tensor], *, seed: int, where: Path) -> None:
    """Sets the weights of an adapted model: those of the base model, and first weights of what was added.

    Args:
        base: the base model's weights by its own names.
        where: what they were read from, for messages.

    Raises:
        DataError: the weights do not fit.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "lora"))
    added = {
        name: _first_weights(name, parameter, generator)
        for name, parameter in model.named_parameters()
        if DOWN in name or UP in name
    }
    if model.num_classes:
        drawn, heads = torch.Generator().manual_seed(derive_seed(seed, "class-head")), model.head_parameters()
        added |= {name: first_head_weights(name, parameter.shape, drawn) for name, parameter in heads.items()}
        old_head = tuple(f"{name}." for name, module in model.named_modules() if module is model.output_head)
        base = {name: t for name, t in base.items() if name not in heads and not name.startswith(old_head)}
    names = {name.replace(BASE_LAYER, ""): name for name, _ in model.named_parameters() if name not in added}
    fill(model, {**{names.get(name, name): tensor for name, tensor in base.items()}, **added}, where)


def _freeze(model: LanguageModel, trained: str) -> None:
    """Freezes the weights that ``tune.train`` leaves out. The new head is always trained."""
    if trained not in ("head", "last-block"):
        return
    model.requires_grad_(False)
    model.output_head.requires_grad_(True)
    if trained == "last-block":
        for module in _last_modules(model):
            module.requires_grad_(True)


def _last_modules(model: LanguageModel) -> list[nn.Module]:
    """Returns the last block, and what follows the list of blocks, such as the final norm."""
    for owner in model.modules():
        children = list(owner.children())
        for place, blocks in enumerate(children):
            if isinstance(blocks, nn.ModuleList) and len(blocks) == model.num_layers:
                return [blocks[-1], *children[place + 1 :]]
    raise UsageError('tune.train = "last-block": the model has no list of blocks; use "head" or "all"')


def _inject_lora(model: LanguageModel, lora: LoRA) -> None:
    try:
        import peft
    except ImportError:
        raise UsageError("tune.lora needs the package peft: pip install 'fromscratch[hf]'") from None
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) | (type(module).__name__ in INJECTED_KINDS)
        and model.vocab_size not in module.weight.shape  # the head stays as it is
    ]
    if not targets:
        raise UsageError("tune.lora: the model has no linear layers; tune all of its weights instead")
    with torch.device(next(model.parameters()).device):
        alpha: Any = lora.alpha  # a float works; the library's annotation says int
        settings = peft.LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)
        peft.inject_adapter_in_model(settings, model)


def _first_weights(name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
    """Uniform for the matrix that reduces, zeros for the other, so that the model begins unchanged (section 4.1)."""
    if UP in name:
        return torch.zeros(parameter.shape)
    bound = 1 / math.sqrt(parameter.shape[1])  # torch's default for a linear layer
    return torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
