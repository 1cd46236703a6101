"""Any encoder of the transformers library (BERT and its relatives) as a classifier, behind the interface of our models.

An encoder reads a text in both directions. It classifies by the head that ``AutoModelForSequenceClassification`` puts
on it, mostly on the first token: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers".
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fromscratch.models.cache import Past
from fromscratch.models.huggingface import HuggingFaceModel


class EncoderModel(HuggingFaceModel):
    """An ``AutoModelForSequenceClassification`` as a model that scores classes; it predicts no tokens."""

    is_encoder = True
    auto_class = "AutoModelForSequenceClassification"

    @property
    def output_head(self) -> nn.Module:
        """What follows the body, and the body's pooler, which no pre-training may have trained."""
        body = self.inner.base_model
        pooler = [body.pooler] if getattr(body, "pooler", None) is not None else []
        return nn.ModuleList([*pooler, *self._head().values()])

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters outside of the body, by name."""
        return {
            f"inner.{name}.{leaf}": parameter
            for name, module in self._head().items()
            for leaf, parameter in module.named_parameters()
        }

    def last_layer(self) -> nn.Linear:
        """Returns the linear layer that gives the scores."""
        linear = [
            layer for module in self._head().values() for layer in module.modules() if isinstance(layer, nn.Linear)
        ]
        return [layer for layer in linear if layer.out_features == self.inner.config.num_labels][-1]

    def _head(self) -> dict[str, nn.Module]:
        body = self.inner.base_model
        return {name: module for name, module in self.inner.named_children() if module is not body}

    def replace_head(self, num_outputs: int) -> None:
        """Puts a head of that many classes in place of the old one; the body stays, with what was added to it."""
        device = next(self.parameters()).device
        self._settings |= {"num_labels": num_outputs, "id2label": None, "label2id": None}
        with torch.device("meta"):
            fresh = self._new()
        for name in self._head():
            setattr(self.inner, name, getattr(fresh, name).to_empty(device=device))
        self.inner.config, self.inner.num_labels = fresh.config, num_outputs

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """Scores of every class for texts without padding: ids [B, T] -> logits [B, C]."""
        return self.inner(input_ids=tokens).logits

    def scores_of(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """Scores of every class: ids [B, T], and booleans [B, T] that are true at the last token alone -> [B, C]."""
        mask = counts.flip(1).cumsum(1).flip(1)  # 1 up to the last token
        return self.inner(input_ids=tokens, attention_mask=mask).logits

    def losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Raises TypeError: an encoder predicts no next token."""
        raise TypeError("an encoder predicts no next token")

    def losses_of(self, tokens: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Cross-entropy in nats of the class of each text: fp32 [B]."""
        return F.cross_entropy(self.scores_of(tokens, counts).float(), targets[counts], reduction="none")

    def forward_flops(self, context_length: int) -> float:
        """Matrix products of all weights but the embeddings', and attention over all of a sequence."""
        owners = [module for module in self.modules() if isinstance(module, nn.Linear)]
        attention = 4 * self.num_layers * int(self.inner.config.hidden_size) * context_length
        return 2 * sum(owner.weight.numel() for owner in owners) + attention


def is_encoder(raw: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is that of an encoder: pre-trained by masking tokens, and not used as a decoder."""
    from transformers.models.auto import modeling_auto

    model_type, names = raw.get("model_type"), raw.get("architectures") or [""]
    is_decoder = bool(raw.get("is_decoder")) or str(names[0]).endswith(("ForCausalLM", "LMHeadModel"))
    return (
        not is_decoder
        and "auto_map" not in raw
        and model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        and not raw.get("is_encoder_decoder")
    )
