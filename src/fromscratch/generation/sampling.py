"""How the next token is chosen from the scores of all."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fromscratch.errors import UsageError


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

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature = {self.temperature}: must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top-k = {self.top_k}: must be 1 or more; leave it out for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            problems.append(f"top-p = {self.top_p}: must be above 0 and at most 1")
        if problems:
            raise UsageError("; ".join(problems))

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One id per row: logits [batch, vocab] -> ids [batch]."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What each token is drawn with: [batch, vocab], each row summing to one."""
        scores = logits.double() / self.temperature
        if self.top_k is not None:
            lowest_kept = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < lowest_kept, float("-inf"))
        if self.top_p is not None:
            ordered, order = scores.sort(dim=-1, descending=True)
            before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
            dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            scores = scores.masked_fill(dropped, float("-inf"))
        return scores.softmax(dim=-1)
