"""A language model trained with fromscratch, for transformers.

The model itself is in ``gpt.py`` and the files it imports. They are the files that trained it, and need
torch only. This file adds the interface of transformers: caches, masks, losses, heads.

Letters: B batch, H heads, C channels of a head, T new positions, S all positions, D embedding, V vocabulary.
"""

from dataclasses import fields, replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from .cache import Past, causal
from .configuration_fromscratch import FromScratchConfig
from .gpt import GPT
from .mechanism import Sizes
from .slots import SLOTS

# Older versions of transformers copy only the files that this file itself imports.
# MODEL FILES

CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""What transformers calls the cache in outputs: version 5.24 renamed it. As an argument, both names are taken."""


class HubPast(Past):
    """The keys and values of earlier positions, kept in a cache of transformers. Without a cache, only a mask."""

    def __init__(self, cache, mask, position_ids, device):
        self.length = 0 if cache is None else int(cache.get_seq_length())
        self.is_padded = mask is not None
        self._cache = cache
        self._mask = mask
        self._position_ids = position_ids
        self._device = device

    def all_positions(self, num_columns):
        """Returns positions [B or 1, num_columns], counted from the first token that is not padding."""
        columns = torch.arange(num_columns, device=self._device)[None]
        if self._mask is None or self._mask.dim() == 4:
            return columns
        real = F.pad(self._mask.bool(), (0, max(0, num_columns - self._mask.shape[1])))[:, :num_columns]
        return torch.where(real, real.cumsum(-1) - 1, columns - num_columns)

    def positions(self, num_new):
        """Returns the given positions, or else counted ones: [B or 1, T]."""
        return super().positions(num_new) if self._position_ids is None else self._position_ids

    def store(self, layer, key, value):
        """Stores new keys and values [B, H, T, C]; returns all of them [B, H, S, C]."""
        if self._cache is None:
            return key, value
        where = torch.arange(self.length, self.length + key.shape[2], device=key.device)
        return self._cache.update(key, value, layer, {"cache_position": where})  # older static caches need it

    def mask(self, sees, length, num_new, num_columns):
        """Returns the attention mask. A given mask [B, 1, T, S] is combined with that of the model's attention."""
        sizes = (length, num_new, num_columns)
        if self._mask is None or self._mask.dim() == 2:
            return super().mask(sees, *sizes)
        given = self._mask if self._mask.dtype == torch.bool else self._mask >= 0
        if sees is not causal:
            given = given & super().mask(sees, *sizes)
        return given | super().mask(torch.eq, *sizes)  # padding attends to itself

    def advance(self, num_new):
        """Does nothing, because the cache counts positions itself."""


def sizes_of(config):
    """Returns the sizes that the mechanisms receive. transformers ties the head."""
    names = [field.name for field in fields(Sizes) if field.name != "tied_head"]
    return Sizes(**{name: getattr(config, name) for name in names}, tied_head=False)


class FromScratchPreTrainedModel(PreTrainedModel):
    """Base class: settings for transformers, and access to the token embedding."""

    config_class = FromScratchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012

    def get_input_embeddings(self):
        return self.base_model.gpt.token_embedding

    def set_input_embeddings(self, value):
        self.base_model.gpt.token_embedding = value


class FromScratchModel(FromScratchPreTrainedModel):
    """The model without a head; returns hidden states after the last norm."""

    def __init__(self, config):
        super().__init__(config)
        self.gpt = GPT(sizes_of(config), replace(SLOTS, head=lambda _sizes: nn.Identity()))
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        cache=None,
        **_kwargs,
    ):
        """Computes hidden states [B, T, D] from ids [B, T] or embeddings [B, T, D]."""
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.gpt.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        recomputes = self.gpt.gradient_checkpointing and self.training
        use_cache = (self.config.use_cache if use_cache is None else use_cache) and not recomputes
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if attention_mask is not None and attention_mask.dim() == 2 and bool(attention_mask.all()):
            attention_mask = None
        past = None
        if cache is not None or attention_mask is not None or position_ids is not None:
            past = HubPast(cache, attention_mask, position_ids, x.device)
        hidden = self.gpt.transform(x, past, input_ids)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: cache})


class FromScratchForCausalLM(FromScratchPreTrainedModel, GenerationMixin):
    """The language model."""

    _tied_weights_keys = {"lm_head.weight": "model.gpt.token_embedding.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = FromScratchModel(config)
        self.lm_head = SLOTS.head(sizes_of(config))
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ):
        """Computes logits [B, T, V] of ids [B, T]; with ``labels`` (the same ids, -100 is ignored) also the loss."""
        cache = past_key_values if cache is None else cache
        outputs = self.model(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            kwargs = {key: value for key, value in kwargs.items() if key in ("num_items_in_batch", "shift_labels")}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: outputs.get(CACHE)})


class FromScratchForSequenceClassification(FromScratchPreTrainedModel):
    """Classifies texts by the hidden state of their last token that is not padding."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FromScratchModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None, **_):
        """Computes scores [B, num_labels]; with ``labels`` also the loss that ``config.problem_type`` names."""
        hidden = self.model(input_ids, attention_mask, position_ids, None, inputs_embeds, False).last_hidden_state
        last = self._last_positions(input_ids, attention_mask, hidden)
        logits = self.score(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, pooled_logits=logits.float(), labels=labels, config=self.config)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits)

    def _last_positions(self, input_ids, attention_mask, hidden):
        """Returns the position [B] of each text's last token; without a mask, that before the trailing padding."""
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = input_ids != self.config.pad_token_id
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], device=hidden.device)
        return (attention_mask.bool() * torch.arange(hidden.shape[1], device=hidden.device)).argmax(-1)


__all__ = [
    "FromScratchForCausalLM",
    "FromScratchForSequenceClassification",
    "FromScratchModel",
    "FromScratchPreTrainedModel",
]
