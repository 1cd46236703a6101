"""Loss, perplexity and bits per byte on a slice of a token store."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fromscratch.files import to_strict_json, write_atomically
from fromscratch.models.gpt import GPT
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.hardware import Hardware
from fromscratch.training.held_out import TokenSlice, sequence_losses
from fromscratch.training.model_sources import LoadedModel
from fromscratch.training.precision import Precision

DEFAULT_BATCH_TOKENS = 8_192
LARGEST_EXPONENT = 700.0  # of a double


@dataclass(frozen=True)
class LossReport:
    """How well a model predicts a text."""

    loss: float
    """Mean cross-entropy, nats per token."""
    perplexity: float
    bits_per_byte: float | None
    """Bits to predict one byte of the text: comparable between tokenizers; None where no byte was predicted."""
    tokens: int
    """Predicted; end-of-text among them."""
    bytes: int
    """UTF-8 bytes of the predicted tokens."""
    seconds: float

    def facts(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def evaluate_loss(
    model: GPT,
    tokenizer: Tokenizer,
    part: TokenSlice,
    hardware: Hardware,
    *,
    batch: int | None = None,
    precision: str = "fp32",
) -> LossReport:
    """Predicts every token of the slice once, in sequences of the model's context length.

    Sums are exact (``math.fsum``), so that the batch size changes nothing beyond the rounding of
    each single loss.
    """
    context_length = model.context_length
    byte_lengths = tokenizer.byte_lengths()
    began = time.perf_counter()
    sums, text_bytes = [], 0
    for targets, losses in sequence_losses(
        model,
        part,
        context_length=context_length,
        batch=batch or max(1, DEFAULT_BATCH_TOKENS // context_length),
        device=hardware.device,
        precision=Precision(precision, hardware.device),
    ):
        sums.append(math.fsum(losses.ravel()))
        text_bytes += int(np.sum(byte_lengths[targets]))
    nats = math.fsum(sums)
    loss = nats / part.tokens
    return LossReport(
        loss=loss,
        perplexity=math.exp(min(loss, LARGEST_EXPONENT)),
        bits_per_byte=nats / math.log(2) / text_bytes if text_bytes else None,
        tokens=part.tokens,
        bytes=text_bytes,
        seconds=time.perf_counter() - began,
    )


def record_loss(loaded: LoadedModel, report: LossReport, **slice_facts: Any) -> None:
    """Keeps the report in the model's run, if it has one: ``evaluations/loss-step-N-<split>-<start>.json``."""
    if loaded.run is None:
        return
    folder = loaded.run.evaluations
    folder.mkdir(exist_ok=True)
    facts = {"measure": "loss", "step": loaded.step, **slice_facts, **report.facts()}
    name = f"loss-step-{loaded.step}-{slice_facts.get('split')}-{slice_facts.get('start')}.json"
    write_atomically(folder / name, to_strict_json(facts, indent=1))
