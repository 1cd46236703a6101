"""Sampling: chooses the next token from the logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fromscratch.errors import UsageError

NEVER = float("-inf")
MAX_LOGIT = 1e300  # a tiny repetition penalty would make logits infinite


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Raises:
        UsageError: settings are outside their ranges; it names all of them.
    """

    temperature: float = 1.0
    """Divides the logits; 0 always chooses the most probable token (greedy)."""
    top_k: int | None = None
    """Samples from the k most probable tokens; None is all."""
    top_p: float | None = None
    """Samples from the smallest set of tokens with this total probability (Holtzman et al. 2020); None is all."""
    min_p: float | None = None
    """Samples from tokens of at least this fraction of the highest probability (Nguyen et al. 2024); None is all."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens already in the text, multiplies negative ones (Keskar et al. 2019)."""

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature = {self.temperature}: must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top-k = {self.top_k}: must be 1 or more; leave it out for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top-p = {self.top_p}: must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            problems.append(f"min-p = {self.min_p}: must be from 0 (off) to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            problems.append(f"repetition-penalty = {self.repetition_penalty}: must be a positive number; 1 is off")
        if problems:
            raise UsageError("; ".join(problems))

    def penalised(self, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """Returns the logits [batch, vocab] after the repetition penalty: row i for the ids in text i."""
        if self.repetition_penalty == 1.0:
            return logits
        used = torch.zeros_like(logits, dtype=torch.bool)
        for row, text in zip(used, texts, strict=True):
            row[[token for token in set(text) if token < logits.shape[-1]]] = True
        logits = logits.double()
        lowered = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
        return torch.where(used, lowered.clamp(-MAX_LOGIT, MAX_LOGIT), logits)

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """Chooses one id for each row of the logits [batch, vocab], with a CPU generator for each row."""
        if self.temperature == 0:
            return logits.argmax(dim=-1).tolist()
        return [
            int(torch.multinomial(self.probabilities(row[None]), 1, generator=generator))
            for row, generator in zip(logits.cpu(), generators, strict=True)
        ]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the probability of each token, [batch, vocab]; each row sums to one."""
        scores = logits.double()
        scores = (scores - scores.amax(dim=-1, keepdim=True)) / self.temperature  # at most 0: nothing overflows
        if self.top_k is not None:
            lowest_kept = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < lowest_kept, NEVER)
        if self.top_p is not None:
            ordered, order = scores.sort(dim=-1, descending=True)
            before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
            dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            scores = scores.masked_fill(dropped, NEVER)
        if self.min_p:
            highest = scores.max(dim=-1, keepdim=True).values
            scores = scores.masked_fill(scores < highest + math.log(self.min_p), NEVER)
        return scores.softmax(dim=-1)
