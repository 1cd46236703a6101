"""A model read from another program's files, and the check of its conversion.

Letters: B batch, T time, V vocabulary, C classes, D embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fromscratch.config.model import ModelConfig
from fromscratch.errors import DataError
from fromscratch.formats.weights import fill, head_name
from fromscratch.models.factory import build_empty, replace_head
from fromscratch.models.language_model import LanguageModel

MAX_DIFFERENCE = 1e-4  # of logits, relative to the largest logit; fp32 rounding stays far below
NUM_CHECKED_TOKENS = 48


@dataclass(frozen=True)
class ImportedModel:
    """A model's config and weights, converted to our names and layouts."""

    format: str
    config: ModelConfig
    tensors: dict[str, Tensor]
    """Under our names, in our layouts, fp32."""
    reference: Callable[[Tensor], Tensor] | None = None
    """The forward pass on the unconverted tensors: ids [B, T] -> logits [B, T, V]. None for our own formats."""
    tokenizer: Path | None = None
    """The file of its tokenizer, if the program keeps it elsewhere than beside the weights."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user about the conversion."""
    classes: tuple[str, ...] = ()
    """Classes of a classifier, in the order of its scores; empty for a language model."""
    score: Tensor | None = None
    """The head of a classifier [C, D]; ``tensors`` are then without a head. None where they hold it."""

    def build(self, where: Path) -> LanguageModel:
        """Builds the model with its weights. Raises DataError where a tensor does not fit."""
        model, tensors = build_empty(self.config, "cpu"), self.tensors
        if self.classes:
            replace_head(model, len(self.classes))
            if self.score is not None:
                tensors = {**tensors, head_name(model): self.score}
        fill(model, tensors, where)
        return model.eval()

    def check(self, model: LanguageModel) -> float:
        """Returns the largest difference of logits before and after conversion, relative to the largest logit.

        Raises:
            DataError: the difference is larger than rounding can explain.
        """
        if self.reference is None or self.classes:  # the reference is of a language model
            return 0.0
        length = min(NUM_CHECKED_TOKENS, model.context_length)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.vocab_size, (2, length), generator=generator)
        with torch.inference_mode():
            before, after = self.reference(tokens), model(tokens)
        difference = ((before - after).abs().max() / before.abs().max().clamp(min=1.0)).item()
        if not difference <= MAX_DIFFERENCE:
            raise DataError(
                f"{self.format} weights: logits before and after the conversion differ by {difference:.2g} of the "
                f"largest logit; rounding explains at most {MAX_DIFFERENCE:g}, so the file does not match its format"
            )
        return difference
