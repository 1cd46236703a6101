"""Loss, perplexity and bits per byte on a slice of a token store."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fromscratch.evaluation.bootstrap import bootstrap_interval
from fromscratch.evaluation.saving import save_evaluation
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.machine.hardware import Hardware
from fromscratch.machine.precision import Precision
from fromscratch.models.language_model import LanguageModel
from fromscratch.processes.world import ALONE, World
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import HeldOut, sequence_losses
from fromscratch.training.objective import Runtime

DEFAULT_BATCH_TOKENS = 8_192
MAX_EXPONENT = 700.0  # of a double


@dataclass(frozen=True)
class LossReport:
    """The loss of a model on a text."""

    loss: float
    """Mean cross-entropy, nats per token."""
    perplexity: float
    bits_per_byte: float | None
    """Bits per predicted byte, comparable between tokenizers; None where no byte was predicted."""
    tokens: int
    """Predicted tokens, end-of-text included."""
    bytes: int
    """UTF-8 bytes of the predicted tokens."""
    seconds: float
    loss_low: float | None = None
    """Ends of the 95% confidence interval of the loss, by bootstrap over sequences; None for one sequence."""
    loss_high: float | None = None
    sequences: int = 0


@dataclass(frozen=True)
class MeasuredLoss:
    """A report and the losses that it summarises."""

    report: LossReport
    sequence_nats: NDArray[np.float64]
    """Sum of the losses of each sequence."""
    sequence_tokens: NDArray[np.int64]
    losses: NDArray[np.float64]
    """Loss of every target that this process predicted, in order, nats."""


def measure_loss(
    model: LanguageModel,
    tokenizer: Tokenizer,
    part: HeldOut,
    hardware: Hardware,
    *,
    batch: int | None = None,
    precision: str = "fp32",
    world: World = ALONE,
) -> MeasuredLoss:
    """Predicts every token once, in sequences of the model's context length (see ``sequence_losses``).

    Sums are exact (``math.fsum``). Batch size and number of processes change the result only by the rounding of
    single losses. The report is the same in every process.
    """
    batch = batch or max(1, DEFAULT_BATCH_TOKENS // model.context_length)
    runtime = Runtime(hardware.device, batch, Precision(precision, hardware.device), world)
    began = time.perf_counter()
    sums: list[float] = []
    counts: list[int] = []
    parts, text_bytes = [np.empty(0)], 0
    for targets, losses in sequence_losses(model, part, runtime):
        sums += [math.fsum(row) for row in losses]
        counts += [losses.shape[1]] * len(losses)
        parts.append(losses.ravel())
        text_bytes += tokenizer.text_bytes(targets) if tokenizer.is_lossless else 0
    if tokenizer.is_lossless:
        text_bytes = round(world.sum(text_bytes))
    else:  # the bytes of a token depend on its neighbours
        text_bytes = round(tokenizer.text_bytes(part.targets()) * part.split.bytes_per_decoded_byte)
    sequence_nats = world.all_gather(torch.tensor(sums, dtype=torch.float64)).numpy()
    sequence_tokens = world.all_gather(torch.tensor(counts)).numpy()
    nats = math.fsum(sequence_nats)
    loss = nats / part.tokens
    low, high = bootstrap_interval(sequence_nats, sequence_tokens)
    report = LossReport(
        loss=loss,
        perplexity=math.exp(min(loss, MAX_EXPONENT)),
        bits_per_byte=nats / math.log(2) / text_bytes if text_bytes else None,
        tokens=part.tokens,
        bytes=text_bytes,
        seconds=time.perf_counter() - began,
        loss_low=low,
        loss_high=high,
        sequences=len(sequence_nats),
    )
    return MeasuredLoss(report, sequence_nats, sequence_tokens, np.concatenate(parts))


def save_loss(loaded: LoadedModel, report: LossReport, **slice_values: Any) -> None:
    """Saves the report in the model's run, if it has one: ``evaluations/loss-step-N-<split>-<start>.json``."""
    name = f"loss-step-{loaded.step}-{slice_values.get('split')}-{slice_values.get('start')}"
    values = {"measure": "loss", **slice_values, **asdict(report)}
    save_evaluation(loaded, name, values, question=(*slice_values, "tokens"))
