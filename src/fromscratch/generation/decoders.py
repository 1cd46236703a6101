"""Decoders: logits of the next token for a batch of growing texts, with a cache or without.

Both see the same window of a text. A text that is longer than the model's context is cut: its window drops
a quarter of the context at a time, so that the cache is rebuilt only then. The window of a text depends on
that text alone, not on the others in the batch.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from fromscratch.generation.packed import packing_pays, with_packed_weights
from fromscratch.generation.prompt_lookup import PromptLookup
from fromscratch.models.language_model import LanguageModel

STRIDES_PER_CONTEXT = 4
DRAFT_TOKENS = 7  # 8 rows with the last token; they take a CPU little longer than one row


def window_start(num_tokens: int, context_length: int) -> int:
    """Returns the index of the first token that the model sees of a text of ``num_tokens``."""
    if num_tokens <= context_length:
        return 0
    stride = max(1, context_length // STRIDES_PER_CONTEXT)
    return -(-(num_tokens - context_length) // stride) * stride


def max_window(model: LanguageModel) -> int:
    """Returns the maximum number of tokens that the model sees of a text."""
    return sys.maxsize if model.has_unlimited_context else model.context_length


class Texts:
    """The ids of several texts. A prompt is cut to its last ``context_length`` tokens."""

    def __init__(self, prompts: Sequence[Sequence[int]], context_length: int) -> None:
        self.context_length = context_length
        self.ids = [list(prompt)[-context_length:] for prompt in prompts]

    def starts(self) -> list[int]:
        """Returns the index of the first token of each window."""
        return [window_start(len(text), self.context_length) for text in self.ids]

    def append(self, new: Sequence[int]) -> None:
        """Appends one id to each text."""
        for text, token in zip(self.ids, new, strict=True):
            text.append(token)


class CachedDecoder:
    """Computes each position once. For a single text it also verifies draft tokens (see ``prompt_lookup``).

    Args:
        draft_tokens: number of speculative tokens in one pass; 0 is none.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        draft_tokens: int = DRAFT_TOKENS,
    ) -> None:
        self.texts = Texts(prompts, max_window(model))
        self._model = model
        weight = next(model.parameters())
        self._device = weight.device
        longest = max(len(text) for text in self.texts.ids)
        self._capacity = min(self.texts.context_length, longest + max_new_tokens + draft_tokens)
        self._cache = model.new_past(self._capacity)
        self._lookup = PromptLookup(draft_tokens if len(prompts) == 1 and self._cache.can_rewind else 0)
        self._draft = DraftTokens()
        self._starts: list[int] = []
        pays = packing_pays(weight, rows=len(prompts), steps=max_new_tokens)
        self._few_tokens_model = with_packed_weights(model, rows=len(prompts)) if pays else model

    def next_logits(self) -> Tensor:
        """Returns the logits of the next token of each text, [batch, vocab]."""
        starts = self.texts.starts()
        if starts != self._starts:
            self._draft = DraftTokens()
            return self._fill(starts)
        if (known := self._draft.after(self.texts.ids[0][-1])) is not None:
            return known
        if self._draft.tokens:
            self._lookup.adapt(self._draft.accepted)
            self._cache.rewind(len(self.texts.ids[0]) - starts[0] - 1)
        drafted = self._draft_tokens()
        tokens = torch.tensor([[text[-1], *drafted] for text in self.texts.ids], device=self._device)
        logits: Tensor = self._few_tokens_model(tokens, self._cache)
        self._draft = DraftTokens(drafted, logits[:, 1:])
        return logits[:, 0]

    def _fill(self, starts: list[int]) -> Tensor:
        """Fills the cache with the whole windows; returns the next logits [batch, vocab]."""
        self._starts = starts
        windows = [text[start:] for text, start in zip(self.texts.ids, starts, strict=True)]
        width = max(len(window) for window in windows)
        padding = [width - len(window) for window in windows]
        self._cache.begin(padding, self._device)
        padded = [[0] * missing + window for missing, window in zip(padding, windows, strict=True)]
        return self._model.next_logits(torch.tensor(padded, device=self._device), self._cache)

    def _draft_tokens(self) -> list[int]:
        """Returns draft tokens for a single text, if the window has room for them."""
        if not self._lookup.num_tokens:
            return []
        has_room = len(self.texts.ids[0]) - self._starts[0] + self._lookup.num_tokens <= self._capacity
        return self._lookup.draft(self.texts.ids[0]) if has_room else []


class DraftTokens:
    """Draft tokens and the logits after each of them. They are valid while the text follows the draft."""

    def __init__(self, tokens: Sequence[int] = (), logits: Tensor | None = None) -> None:
        self.tokens = tokens
        self._logits = logits  # [1, draft, vocab]
        self.accepted = 0
        """Number of draft tokens that are in the text."""

    def after(self, token: int) -> Tensor | None:
        """Returns the logits after one more token, [1, vocab], if it is the next draft token; else None."""
        if self._logits is None or self.accepted == len(self.tokens) or self.tokens[self.accepted] != token:
            return None
        self.accepted += 1
        return self._logits[:, self.accepted - 1]


class PlainDecoder:
    """Recomputes the whole window for every token; reference implementation."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
        self.texts = Texts(prompts, max_window(model))
        self._model = model
        self._device = next(model.parameters()).device

    def next_logits(self) -> Tensor:
        """Returns the logits of the next token of each text, [batch, vocab]."""
        windows = [text[start:] for text, start in zip(self.texts.ids, self.texts.starts(), strict=True)]
        return torch.cat([self._model(torch.tensor([ids], device=self._device))[:, -1] for ids in windows])


Decoder = CachedDecoder | PlainDecoder
