"""A recurrent language model trained with fromscratch, for transformers.

The model itself is in ``recurrent.py`` and the files it imports. They are the files that trained it, and need torch
only. This file adds the interface of transformers: masks, losses, heads. There is no cache: generation reads the whole
text again for every token.

Letters: B batch, T time, H hidden, V vocabulary.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, SequenceClassifierOutput

from .configuration_fromscratch import FromScratchConfig
from .recurrent import LAYERS, Recurrent, RecurrentHead, RecurrentState

# Older versions of transformers copy only the files that this file itself imports.
# MODEL FILES


class FromScratchPreTrainedModel(PreTrainedModel):
    """Base class: settings for transformers, and access to the token embedding; one-hot vectors have none."""

    config_class = FromScratchConfig
    base_model_prefix = "model"

    def get_input_embeddings(self):
        return self.base_model.recurrent.token_embedding

    def set_input_embeddings(self, value):
        self.base_model.recurrent.token_embedding = value


class FromScratchModel(FromScratchPreTrainedModel):
    """The model without a head; returns the outputs of the last layer."""

    def __init__(self, config):
        super().__init__(config)
        table = config.fromscratch_model
        self.recurrent = Recurrent(
            LAYERS[table["kind"]][table["implementation"]],
            vocab_size=config.vocab_size,
            context_length=config.max_position_embeddings,
            num_layers=config.num_hidden_layers,
            hidden_dim=config.hidden_size,
            embedding_dim=table.get("embedding_dim"),
            dropout=config.dropout,
        )
        self.recurrent.head = nn.Identity()
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **_kwargs):
        """Computes outputs [B, T, H] from ids [B, T]. A text begins after its padding on the left."""
        if input_ids is None:
            raise ValueError("a recurrent model reads input_ids")
        past = None
        if attention_mask is not None:
            past = RecurrentState()
            past.begin((attention_mask.cumsum(-1) == 0).sum(-1).tolist(), input_ids.device)
        return BaseModelOutput(last_hidden_state=self.recurrent.read(input_ids, past))


class FromScratchForCausalLM(FromScratchPreTrainedModel, GenerationMixin):
    """The language model."""

    def __init__(self, config):
        super().__init__(config)
        self.model = FromScratchModel(config)
        self.lm_head = RecurrentHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_kwargs):
        """Returns the whole text."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids=None, attention_mask=None, labels=None, logits_to_keep=0, **kwargs):
        """Computes logits [B, T, V] of ids [B, T]; with ``labels`` (the same ids, -100 is ignored) also the loss."""
        outputs = self.model(input_ids, attention_mask).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs[:, kept])
        loss = None
        if labels is not None:
            kwargs = {key: value for key, value in kwargs.items() if key in ("num_items_in_batch", "shift_labels")}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)


class FromScratchForSequenceClassification(FromScratchPreTrainedModel):
    """Classifies texts by the state after their last token that is not padding."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FromScratchModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **_):
        """Computes scores [B, num_labels]; with ``labels`` also the loss that ``config.problem_type`` names."""
        outputs = self.model(input_ids, attention_mask).last_hidden_state
        if attention_mask is None and self.config.pad_token_id is not None:
            attention_mask = input_ids != self.config.pad_token_id
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        last = (attention_mask.bool() * torch.arange(outputs.shape[1], device=outputs.device)).argmax(-1)
        logits = self.score(outputs[torch.arange(len(outputs), device=outputs.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, pooled_logits=logits.float(), labels=labels, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


__all__ = [
    "FromScratchForCausalLM",
    "FromScratchForSequenceClassification",
    "FromScratchModel",
    "FromScratchPreTrainedModel",
]
