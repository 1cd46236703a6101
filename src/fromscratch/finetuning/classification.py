"""Learns the class of a text: the objective of classification, and the scores of a trained classifier.

The head scores the classes from the hidden state of a text's last token, which alone sees the whole text. In the
terms of ``instruction.py``, an example has one target that counts: the class, at the last token.

Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.2.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fromscratch.errors import UsageError
from fromscratch.evaluation.classification import tempered_loss
from fromscratch.finetuning.batches import held_out_batches
from fromscratch.finetuning.instruction import IGNORED, Example, Examples, InstructionTuning, collate
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.models.language_model import LanguageModel
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import evaluating
from fromscratch.training.objective import Carry, LossSum, MicroBatch, Runtime

LOG = logging.getLogger(__name__)


def encode_texts(
    texts: Sequence[str], targets: Sequence[int], tokenizer: Tokenizer, *, context_length: int, is_framed: bool = False
) -> Examples:
    """Encodes texts, cut to the context at their ends; the target of the last token is the class.

    Args:
        is_framed: whether to put the tokenizer's special tokens around each text, as encoders are trained.

    Raises:
        UsageError: the tokenizer has no end-of-text token, with which batches are padded, or a text has no token.
    """
    tokenizer.check_end_of_text("pads batches; a model without one cannot classify")
    before, after = tokenizer.frame() if is_framed else ([], [])
    room, kept, num_cut = context_length - len(before) - len(after), [], 0
    for ids, target in zip(tokenizer.encode_documents(list(texts)), targets, strict=True):
        if not len(ids):
            raise UsageError("an empty text, or one without any token of the model's tokenizer, has no class")
        num_cut += len(ids) > room
        inputs = np.concatenate([before, ids[:room], after]).astype(np.int64)
        places = np.full(len(inputs), IGNORED, dtype=np.int64)
        places[-1] = target
        kept.append(Example(inputs, places))
    return Examples(kept, num_cut, 0)


def max_text_tokens(loaded: LoadedModel) -> int:
    """Number of tokens of a text that a classifier reads: the context; all of them where a state carries on."""
    return sys.maxsize if loaded.model.has_unlimited_context else loaded.config.context_length


def class_weights(labels: Sequence[str], classes: Sequence[str]) -> tuple[float, ...]:
    """Returns weights of the losses by class, inverse to its share; over the texts, their mean is 1."""
    counts = Counter(labels)
    return tuple(len(labels) / (len(classes) * counts[label]) for label in classes)


@dataclass(frozen=True)
class Classification(InstructionTuning):
    """Predicts the class after the last token of a text. See ``Objective``."""

    weights: tuple[float, ...] = ()
    """Weights of the losses, by class; empty weighs all alike."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens read in a step, on average over the training part, rounded up."""
        return -(-sum(self.training.lengths) * self.order.global_batch // len(self.training.kept))

    def evaluate(self, model: LanguageModel, runtime: Runtime, stop: Callable[[], bool]) -> float | None:
        """Returns the ``tempered_loss`` of the validation part; None where ``stop`` interrupted.

        Of a model that grows too sure of itself the plain loss rises, even while it tells the classes better (Guo et
        al. 2017, section 3). By that loss training would stop too early, at a checkpoint that is too early.
        """
        rows = [torch.empty(0, 1 + (model.num_classes or 0), device=runtime.device)]  # of each text: class, scores
        batches = held_out_batches(self.validation.lengths, micro_batch=runtime.micro_batch)
        with evaluating(model), torch.inference_mode():
            for indices, width in runtime.world.local_shard(batches):
                if stop():
                    break
                padded = collate(self.validation.kept, self.end_of_text, indices, width)
                inputs, targets = (tensor.to(runtime.device) for tensor in padded)
                counts = targets != IGNORED
                with runtime.precision.arithmetic():
                    scores = model.scores_of(inputs, counts)
                rows.append(torch.cat([targets[counts][:, None], scores.float()], dim=1))
                runtime.world.heartbeat()
        found = runtime.world.all_gather(torch.cat(rows)).double().cpu().numpy()
        if len(found) < len(self.validation.kept):
            return None
        labels, logits = found[:, 0].astype(np.int64), found[:, 1:]
        return tempered_loss(logits, labels, self.weights)

    def loss(self, model: LanguageModel, batch: MicroBatch, carry: Carry) -> LossSum:
        counts = batch.targets != IGNORED
        losses, auxiliary, penalty = model.training_losses(batch.inputs, batch.targets, counts)
        if self.weights:
            losses = losses * losses.new_tensor(self.weights)[batch.targets[counts]]
        return LossSum(losses.sum(), counts.sum(), carry, auxiliary, penalty)


@torch.inference_mode()
def score_texts(loaded: LoadedModel, texts: Sequence[str], *, batch: int = 32) -> NDArray[np.float64]:
    """Returns the logits of every class [texts, classes], of a classifier.

    Raises:
        UsageError: a text has no token.
    """
    tokenizer, length = loaded.tokenizer, max_text_tokens(loaded)
    is_framed = loaded.model.is_encoder
    examples = encode_texts(texts, [0] * len(texts), tokenizer, context_length=length, is_framed=is_framed)
    if examples.num_cut:
        LOG.warning("notice: %d texts are longer than %d tokens; their ends are cut", examples.num_cut, length)
    scores = np.empty((len(texts), len(loaded.classes)))
    device = next(loaded.model.parameters()).device
    for indices, width in held_out_batches(examples.lengths, micro_batch=batch):
        inputs, targets = (t.to(device) for t in collate(examples.kept, tokenizer.end_of_text, indices, width))
        scores[indices] = loaded.model.scores_of(inputs, targets != IGNORED).double().cpu().numpy()
    return scores
