"""Compares two models on the same tokens: loss difference, confidence interval, and most different documents."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fromscratch.errors import UsageError
from fromscratch.evaluation.bootstrap import bootstrap_interval
from fromscratch.evaluation.loss import LossReport, measure_loss
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.machine.hardware import Hardware
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import HeldOut

MAX_DOCUMENTS = 5
MAX_TEXT_CHARACTERS = 120
MIN_DOCUMENT_TOKENS = 8  # the mean of fewer is noise


@dataclass(frozen=True)
class DocumentDifference:
    """The difference of two models on one document."""

    first_token: int
    """Index of its first token in the split."""
    tokens: int
    difference: float
    """B's mean loss minus A's, nats per token."""
    text: str


@dataclass(frozen=True)
class Comparison:
    """The paired comparison of two models, A and B."""

    a: LossReport
    b: LossReport
    difference: float
    """B's loss minus A's, nats per token; B is better below 0."""
    low: float | None
    """Ends of its 95% confidence interval, by bootstrap over sequences."""
    high: float | None
    documents: list[DocumentDifference]
    """The documents with the largest difference."""

    @property
    def verdict(self) -> str:
        """The result as a sentence. The interval covers the choice of the text, not of the training seed."""
        if self.low is None or self.high is None:
            return "unknown: one sequence has no confidence interval"
        if self.low > 0 or self.high < 0:
            return "B is better on this text" if self.difference < 0 else "A is better on this text"
        return "no significant difference on this text"


def compare_models(
    a: LoadedModel, b: LoadedModel, part: HeldOut, hardware: Hardware, *, batch: int | None = None
) -> Comparison:
    """Evaluates both models on the same text.

    Raises:
        UsageError: their tokenizers or context lengths differ, so that their sequences are not the same.
    """
    if a.tokenizer.fingerprint != b.tokenizer.fingerprint:
        raise UsageError(
            f"{a.source} has tokenizer {a.tokenizer.name}, {b.source} has {b.tokenizer.name}: their tokens cannot "
            "be paired; compare bits_per_byte of 'eval loss', each on a store of its own tokenizer"
        )
    if a.model.context_length != b.model.context_length:
        raise UsageError(
            f"{a.source} has a context of {a.model.context_length} tokens, {b.source} one of {b.model.context_length}: "
            "their sequences cannot be paired; use 'eval loss' for each"
        )
    of_a, of_b = (measure_loss(m.model, m.tokenizer, part, hardware, batch=batch) for m in (a, b))
    difference = of_b.sequence_nats - of_a.sequence_nats
    low, high = bootstrap_interval(difference, of_a.sequence_tokens)
    return Comparison(
        a=of_a.report,
        b=of_b.report,
        difference=float(difference.sum()) / part.tokens,
        low=low,
        high=high,
        documents=_most_different(of_b.losses - of_a.losses, part, a.tokenizer),
    )


def _most_different(difference: NDArray[np.float64], part: HeldOut, tokenizer: Tokenizer) -> list[DocumentDifference]:
    """Returns the documents with the largest mean difference, in either direction."""
    found, before = [], 0
    for start, tokens in part.texts:
        targets, differences = part.split.read(start + 1, tokens), difference[before : before + tokens]
        ends = np.flatnonzero(targets == tokenizer.end_of_text) + 1
        for begin, end in pairwise([0, *(int(end) for end in ends if end < tokens), tokens]):
            if end - begin >= MIN_DOCUMENT_TOKENS:
                text = tokenizer.decode(targets[begin:end])[:MAX_TEXT_CHARACTERS]
                mean = float(differences[begin:end].mean())
                found.append(DocumentDifference(start + 1 + begin, end - begin, mean, text))
        before += tokens
    return sorted(found, key=lambda document: -abs(document.difference))[:MAX_DOCUMENTS]
