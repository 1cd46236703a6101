"""Any causal language model of the transformers library, behind the interface of our own models.

Needs ``transformers``, which is imported when such a model is built. Code from a model's repository is never run.
Its dropout is off: it draws from torch's global generator, so a resumed run would differ.
"""

import inspect
import json
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fromscratch.config.model import HuggingFaceConfig
from fromscratch.models.cache import Past
from fromscratch.models.language_model import LanguageModel
from fromscratch.models.mechanism import Init

DROPOUT_ENDINGS = ("dropout", "dropout_prob", "_pdrop")
"""Endings of the keys of dropout probabilities in transformers' configs."""


class HuggingFacePast(Past):
    """The cache of a transformers model, and the padding of each text."""

    def begin(self, padding: list[int], device: torch.device) -> None:
        from transformers import DynamicCache

        self.length, self.cache = 0, DynamicCache()
        self.is_padded = any(padding)
        self._padding = torch.tensor(padding, device=device)[:, None]

    def all_positions(self, num_columns: int) -> Tensor:
        return torch.arange(num_columns, device=self._padding.device)[None] - self._padding


class HuggingFaceModel(LanguageModel):
    """A transformers model as a ``LanguageModel``."""

    auto_class = "AutoModelForCausalLM"

    def __init__(self, config: HuggingFaceConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self._settings = json.loads(config.architecture)
        self.vocab_size, self.context_length = config.vocab_size, config.context_length
        self.inner = self._new()
        self.num_layers = int(self.inner.config.num_hidden_layers)

    def _new(self) -> Any:
        """Returns the module on torch's current default device, with unset weights."""
        import transformers
        from transformers.initialization import no_init_weights

        with ExitStack() as stack:
            stack.enter_context(no_init_weights())
            config = transformers.AutoConfig.for_model(**self._settings_without_dropout())
            return getattr(transformers, self.auto_class).from_config(config, dtype=torch.float32)

    def _settings_without_dropout(self) -> dict[str, Any]:
        return self._settings | {key: 0.0 for key, value in self._settings.items() if is_dropout(key, value)}

    @property
    def output_head(self) -> nn.Module:
        """The output embeddings, or what replaced them."""
        head: nn.Module = self.inner.get_output_embeddings()
        return head

    def replace_head(self, num_outputs: int) -> None:
        """Puts a linear layer in place of the output embeddings, on the hidden states of the last layer."""
        width = self.inner.get_output_embeddings().weight.shape[1]
        self.inner.set_output_embeddings(nn.Linear(width, num_outputs, bias=False))

    def tie_parameters(self) -> None:
        """Ties the weights again, and computes the buffers, which are no part of a checkpoint."""
        self.inner.tie_weights()
        with torch.device("cpu"):
            fresh = self._new()
        for name, buffer in fresh.named_buffers():
            owner, _, leaf = name.rpartition(".")
            module = self.inner.get_submodule(owner)
            module._buffers[leaf] = buffer.to(next(self.parameters()).device)

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """Scores of the next token at every position: ids [B, T] -> logits [B, T, V]."""
        if self.num_classes:  # not by the language model, which may scale its logits
            return self.output_head(self.inner.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
        if past is None:
            return self.inner(input_ids=tokens, use_cache=False).logits
        assert isinstance(past, HuggingFacePast)
        positions = past.all_positions(past.length + tokens.shape[1])
        mask = (positions >= 0).expand(len(tokens), -1).long()
        new = positions[:, past.length :].clamp(min=0).expand(tokens.shape)
        arguments = {"input_ids": tokens, "attention_mask": mask, "position_ids": new, self._cache_name: past.cache}
        logits = self.inner(**arguments, use_cache=True).logits
        past.advance(tokens.shape[1])
        return logits

    @cached_property
    def _cache_name(self) -> str:
        """What the model calls its cache; version 5.24 of transformers renamed it."""
        return "cache" if "cache" in inspect.signature(self.inner.forward).parameters else "past_key_values"

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of every target: ids [B, T] and [B, T] -> fp32 [B, T]."""
        logits = self(tokens).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)

    def losses_of(self, tokens: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """As ``losses``, of the N targets alone where ``counts`` [B, T] is true: fp32 [N]."""
        return F.cross_entropy(self(tokens)[counts].float(), targets[counts], reduction="none")

    def new_past(self, capacity: int) -> Past:
        """A cache of the transformers library."""
        return HuggingFacePast()

    def reset(self, init: Init) -> None:
        """Raises TypeError: such a model has weights of its own, and is tuned, not trained from random ones."""
        raise TypeError("a model of kind 'huggingface' is not trained from random weights")

    def forward_flops(self, context_length: int) -> float:
        """Matrix products of all weights but the embedding's, and attention over the earlier half of a sequence."""
        head = self.inner.get_output_embeddings()
        owners = [module for module in self.modules() if not isinstance(module, nn.Embedding)]
        matrices = [owner.weight for owner in owners if isinstance(getattr(owner, "weight", None), Tensor)]
        weights: int = sum(w.numel() for w in matrices if isinstance(w, Tensor) and w.ndim == 2)
        is_counted = any(weight is head.weight for weight in matrices)
        attention = 4 * self.num_layers * int(self.inner.config.hidden_size) * (context_length + 1) / 2
        return 2 * (weights + (0 if is_counted else head.weight.numel())) + attention


def is_dropout(key: str, value: Any) -> bool:
    """Whether a key of a transformers config is a probability of dropout that is not zero."""
    return key.endswith(DROPOUT_ENDINGS) and isinstance(value, int | float) and bool(value)


def build(config: HuggingFaceConfig) -> HuggingFaceModel:
    """Builds the kind ``huggingface``: a causal language model or an encoder, by its architecture."""
    from fromscratch.models.encoders import EncoderModel, is_encoder  # which imports this module

    return EncoderModel(config) if is_encoder(json.loads(config.architecture)) else HuggingFaceModel(config)
