"""Compares two models on the same tokens: difference of losses, interval, and the documents that differ most."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fromscratch.errors import UsageError
from fromscratch.evaluation.loss import LossReport, bootstrap_interval, evaluation_runtime, measure_loss
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.machine.hardware import Hardware
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import TokenSlice

SHOWN_CHARACTERS = 120
MIN_TOKENS = 8  # of a document; the mean of fewer is noise


@dataclass(frozen=True)
class DocumentDifference:
    """A document on which two models differ."""

    first_token: int
    """Where it begins in the split."""
    tokens: int
    difference: float
    """B's mean loss minus A's, nats per token."""
    text: str


@dataclass(frozen=True)
class Comparison:
    """B against A, paired by sequence."""

    a: LossReport
    b: LossReport
    difference: float
    """B's loss minus A's, nats per token: below 0, B is better."""
    low: float | None
    """Ends of its 95% confidence interval, by bootstrap over sequences."""
    high: float | None
    documents: list[DocumentDifference]
    """The documents with the largest difference."""

    @property
    def verdict(self) -> str:
        """In words. The interval covers the noise of the test set, not that of the seed."""
        if self.low is None or self.high is None:
            return "unknown: one sequence is no sample"
        if self.low > 0 or self.high < 0:
            return "B is better on this text" if self.difference < 0 else "A is better on this text"
        return "no difference that this text can show"


def compare_models(
    a: LoadedModel,
    b: LoadedModel,
    part: TokenSlice,
    hardware: Hardware,
    *,
    batch: int | None = None,
    max_documents: int = 5,
) -> Comparison:
    """Evaluates both models on one slice.

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
    measured = [
        measure_loss(m.model, m.tokenizer, part, evaluation_runtime(m.model, hardware, batch=batch)) for m in (a, b)
    ]
    difference = measured[1].sequence_nats - measured[0].sequence_nats
    interval = bootstrap_interval(difference, measured[0].sequence_tokens)
    per_token = measured[1].losses - measured[0].losses
    return Comparison(
        a=measured[0].report,
        b=measured[1].report,
        difference=float(difference.sum()) / part.tokens,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        documents=_documents(per_token, part, a.tokenizer, max_documents),
    )


def _documents(
    difference: NDArray[np.float64], part: TokenSlice, tokenizer: Tokenizer, max_documents: int
) -> list[DocumentDifference]:
    """Returns the documents with the largest mean difference, in either direction."""
    targets = part.split.read(part.start + 1, part.tokens)
    ends = np.flatnonzero(targets == tokenizer.end_of_text) + 1
    bounds = [0, *(int(end) for end in ends if end < part.tokens), part.tokens]
    found = []
    for begin, end in pairwise(bounds):
        if end - begin >= MIN_TOKENS:
            text = tokenizer.decode(targets[begin:end])[:SHOWN_CHARACTERS]
            mean = float(difference[begin:end].mean())
            found.append(DocumentDifference(part.start + 1 + begin, end - begin, mean, text))
    return sorted(found, key=lambda document: -abs(document.difference))[:max_documents]
