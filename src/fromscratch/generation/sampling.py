"""Sampling: chooses the next token from the logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fromscratch.errors import UsageError

NEVER = float("-inf")
MAX_SCORE = 1e300  # a tiny repetition penalty would make scores infinite


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice.

    Raises:
        UsageError: a setting is outside its range; all of them are checked at once.
    """

    temperature: float = 1.0
    """Scores are divided by it; 0 always takes the highest."""
    top_k: int | None = None
    """Only the k highest scores compete; None is all."""
    top_p: float | None = None
    """Only the fewest tokens whose probabilities reach p compete (Holtzman et al. 2020); None is all."""
    min_p: float | None = None
    """Only tokens at least this share as probable as the likeliest compete (Nguyen et al. 2024); None is all."""
    repetition_penalty: float = 1.0
    """Scores of tokens already in the text are divided by it, negative ones multiplied (Keskar et al. 2019)."""

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

    @property
    def greedy(self) -> bool:
        """Whether the token of the highest score is always chosen."""
        return self.temperature == 0

    def penalised(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Logits [batch, vocab] with those of the ids ``seen`` [batch, time] made less likely."""
        if self.repetition_penalty == 1.0:
            return logits
        logits = logits.double()
        scores = logits.gather(-1, seen)
        lowered = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
        return logits.scatter(-1, seen, lowered.clamp(-MAX_SCORE, MAX_SCORE))

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Chooses one id per row: logits [batch, vocab] -> ids [batch]."""
        if self.greedy:
            return logits.argmax(dim=-1)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

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
            likeliest = scores.max(dim=-1, keepdim=True).values
            scores = scores.masked_fill(scores < likeliest + math.log(self.min_p), NEVER)
        return scores.softmax(dim=-1)
