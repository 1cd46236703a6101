"""A language model trained with fromscratch, for transformers.

The model itself is in ``gpt.py`` and its siblings, the very files that trained it; they need torch
alone. Here is what transformers asks for around them: caches, masks, losses, heads.

Letters: B batch, H heads, T new positions, S positions to look at, D embedding, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from .assembly import assemble_gpt
from .configuration_fromscratch import FromScratchConfig
from .gpt import GPT
from .slots import SLOTS

# Older versions of transformers copy only what this file itself imports.
# CARRIED FILES


class HubPast:
    """The memory that the model's attention asks for, kept in a cache of transformers; or a mask alone."""

    def __init__(self, cache, mask, position_ids, device):
        self.cache = cache
        self.length = 0 if cache is None else int(cache.get_seq_length())
        self._mask = mask
        self._position_ids = position_ids
        self._device = device
        self._visible = None

    def positions(self, num_new):
        """[B or 1, T]: as given, or counted from the first token that is no padding."""
        if self._position_ids is not None:
            return self._position_ids
        if self._mask is not None and self._mask.dim() == 2:
            return (self._mask.long().cumsum(-1) - 1).clamp(min=0)[:, -num_new:]
        return torch.arange(self.length, self.length + num_new, device=self._device)[None]

    def layer(self, index):
        """The part of one layer."""
        return HubLayer(self, index)

    def advance(self, num_new):
        """Nothing: the cache has counted already."""

    def visible(self, num_new, num_all):
        """Who sees whom, True where they do: [T, S], or [B, 1, T, S] where there is padding."""
        if self._visible is None:
            self._visible = self._who_sees_whom(num_new, num_all)
        return self._visible

    def _who_sees_whom(self, num_new, num_all):
        if self._mask is not None and self._mask.dim() == 4:
            return self._mask
        all_positions = torch.arange(num_all, device=self._device)
        new_positions = torch.arange(self.length, self.length + num_new, device=self._device)[:, None]
        causal = all_positions <= new_positions
        if self._mask is None:
            return causal
        real = F.pad(self._mask.bool(), (0, max(0, num_all - self._mask.shape[1])))[:, :num_all]
        itself = all_positions == new_positions  # padding sees itself: a softmax over nothing has no value
        return (causal & real[:, None] | itself)[:, None]


class HubLayer:
    """One layer's part of a ``HubPast``."""

    def __init__(self, past, index):
        self._past = past
        self._index = index

    def extend(self, key, value):
        """New keys and values [B, H, T, C] in; all of them, and who sees whom, out."""
        num_new = key.shape[2]
        if self._past.cache is not None:
            where = torch.arange(self._past.length, self._past.length + num_new, device=key.device)
            place = {"cache_position": where}  # static caches of older versions ask for it
            key, value = self._past.cache.update(key, value, self._index, place)
        return key, value, self._past.visible(num_new, key.shape[2])


class HubGPT(GPT):
    """The model, able to recompute activations in the backward pass instead of keeping them."""

    gradient_checkpointing = False

    def through(self, block, x, past):
        """One block."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(block.__call__, x, past)
        return super().through(block, x, past)


class FromScratchPreTrainedModel(PreTrainedModel):
    """What all the classes here share."""

    config_class = FromScratchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = "past_key_values"


class FromScratchModel(FromScratchPreTrainedModel):
    """The model without a head: hidden states after the last norm."""

    def __init__(self, config):
        super().__init__(config)
        self.gpt = assemble_gpt(
            replace(SLOTS, head=lambda **_: nn.Identity()),
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            embedding_dim=config.hidden_size,
            dropout=config.dropout,
            attention_bias=config.attention_bias,
            tied_head=False,
            gpt=HubGPT,
        )
        self.post_init()

    def get_input_embeddings(self):
        return self.gpt.token_embedding

    def set_input_embeddings(self, value):
        self.gpt.token_embedding = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **_kwargs,
    ):
        """Ids [B, T] or embeddings [B, T, D] -> hidden states [B, T, D]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.gpt.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        recomputes = self.gpt.gradient_checkpointing and self.training
        use_cache = (self.config.use_cache if use_cache is None else use_cache) and not recomputes
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if attention_mask is not None and attention_mask.dim() == 2 and bool(attention_mask.all()):
            attention_mask = None
        past = None
        if past_key_values is not None or attention_mask is not None or position_ids is not None:
            past = HubPast(past_key_values, attention_mask, position_ids, x.device)
        hidden = self.gpt.transform(x, past)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class FromScratchForCausalLM(FromScratchPreTrainedModel, GenerationMixin):
    """The language model."""

    _tied_weights_keys = {"lm_head.weight": "model.gpt.token_embedding.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = FromScratchModel(config)
        self.lm_head = SLOTS.head(embedding_dim=config.hidden_size, vocab_size=config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

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
        **kwargs,
    ):
        """Ids [B, T] -> logits [B, T, V]; with ``labels`` (the ids themselves, -100 ignored) also the loss."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            kwargs = {key: value for key, value in kwargs.items() if key in ("num_items_in_batch", "shift_labels")}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


class FromScratchForSequenceClassification(FromScratchPreTrainedModel):
    """A classifier of texts by their last token that is no padding."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FromScratchModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None, **_):
        """Ids [B, T] -> scores [B, labels]; with ``labels`` also the loss that ``config.problem_type`` names."""
        hidden = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=False,
        ).last_hidden_state
        last = self._last_token(input_ids, attention_mask, hidden)
        logits = self.score(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, pooled_logits=logits.float(), labels=labels, config=self.config)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits)

    def _last_token(self, input_ids, attention_mask, hidden):
        """[B]: where each text ends; without a mask, before the padding that ends it."""
        time = hidden.shape[1]
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = input_ids != self.config.pad_token_id
        if attention_mask is None:
            return torch.full((hidden.shape[0],), time - 1, device=hidden.device)
        positions = torch.arange(time, device=hidden.device)
        return (attention_mask.bool() * positions).argmax(-1)


__all__ = [
    "FromScratchForCausalLM",
    "FromScratchForSequenceClassification",
    "FromScratchModel",
    "FromScratchPreTrainedModel",
]
