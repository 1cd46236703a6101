"""The scores of the next token, for a batch of texts that grow: with a cache, or by computing all anew.

Both see the same window of a text. A model with learned positions cannot go on past its context; once
a text is longer, the window drops its oldest quarter at a time, so that the cache is filled anew only
then. What a text's window is depends on that text alone, never on its neighbours in the batch.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from fromscratch.generation.lookup import Lookup
from fromscratch.generation.packed import packed_twin, packing_pays
from fromscratch.models.language_model import LanguageModel

SHARE_DROPPED = 4  # a quarter of the context
GUESSED_TOKENS = 7  # one more token makes eight rows, which cost a processor little more than one


def window_start(num_tokens: int, context_length: int) -> int:
    """Where the window on a text of ``num_tokens`` begins."""
    if num_tokens <= context_length:
        return 0
    stride = max(1, context_length // SHARE_DROPPED)
    return -(-(num_tokens - context_length) // stride) * stride


def max_window(model: LanguageModel) -> int:
    """Number of tokens of a text that the model can see at once."""
    return sys.maxsize if model.has_unlimited_context else model.context_length


class Texts:
    """The ids of several texts, each cut at first to its last ``context_length``."""

    def __init__(self, prompts: Sequence[Sequence[int]], context_length: int) -> None:
        self.context_length = context_length
        self.ids = [list(prompt)[-context_length:] for prompt in prompts]

    def starts(self) -> list[int]:
        """Where each window begins."""
        return [window_start(len(text), self.context_length) for text in self.ids]

    def append(self, new: Sequence[int]) -> None:
        """One id for each text."""
        for text, token in zip(self.ids, new, strict=True):
            text.append(token)


class CachedDecoder:
    """Computes each position once, and for a single text a few guessed ones ahead (see ``lookup``).

    Args:
        guessed_tokens: most tokens in a guess; 0 guesses nothing.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        guessed_tokens: int = GUESSED_TOKENS,
    ) -> None:
        self.texts = Texts(prompts, max_window(model))
        self._model = model
        weight = next(model.parameters())
        self._device = weight.device
        longest = max(len(text) for text in self.texts.ids)
        self._capacity = min(self.texts.context_length, longest + max_new_tokens + guessed_tokens)
        self._cache = model.new_past(self._capacity)
        self._lookup = Lookup(guessed_tokens if len(prompts) == 1 and self._cache.can_rewind else 0)
        self._ahead = Ahead()
        self._starts: list[int] = []
        pays = packing_pays(weight, rows=len(prompts), steps=max_new_tokens)
        self._few_tokens_model = packed_twin(model, rows=len(prompts)) if pays else model

    def next_logits(self) -> Tensor:
        """[batch, vocab]"""
        starts = self.texts.starts()
        if starts != self._starts:
            self._ahead = Ahead()
            return self._fill(starts)
        if (known := self._ahead.after(self.texts.ids[0][-1])) is not None:
            return known
        self._forget_wrong_guesses()
        guess = self._guess()
        tokens = torch.tensor([[text[-1], *guess] for text in self.texts.ids], device=self._device)
        logits: Tensor = self._few_tokens_model(tokens, self._cache)
        self._ahead = Ahead(guess, logits[:, 1:])
        return logits[:, 0]

    def _fill(self, starts: list[int]) -> Tensor:
        """Takes in the whole windows; [batch, vocab]."""
        self._starts = starts
        windows = [text[start:] for text, start in zip(self.texts.ids, starts, strict=True)]
        width = max(len(window) for window in windows)
        padding = [width - len(window) for window in windows]
        self._cache.begin(padding, self._device)
        padded = [[0] * missing + window for missing, window in zip(padding, windows, strict=True)]
        return self._model.next_logits(torch.tensor(padded, device=self._device), self._cache)

    def _forget_wrong_guesses(self) -> None:
        if self._ahead.is_judged:
            self._lookup.learn(self._ahead.accepted)
            self._cache.rewind(len(self.texts.ids[0]) - self._starts[0] - 1)

    def _guess(self) -> list[int]:
        """What may follow a single text, where the window has room for a whole guess."""
        if not self._lookup.most:
            return []
        has_room = len(self.texts.ids[0]) - self._starts[0] + self._lookup.most <= self._capacity
        return self._lookup.guess(self.texts.ids[0]) if has_room else []


class Ahead:
    """The scores that follow a guess, for as long as the text goes as guessed."""

    def __init__(self, guess: Sequence[int] = (), logits: Tensor | None = None) -> None:
        self._guess = guess
        self._logits = logits  # [1, guessed, vocab]
        self.accepted = 0
        """Tokens that were guessed right."""

    @property
    def is_judged(self) -> bool:
        """Whether there was a guess."""
        return bool(self._guess)

    def after(self, token: int) -> Tensor | None:
        """The scores after one more token, [1, vocab], where it is the one that was guessed."""
        if self._logits is None or self.accepted == len(self._guess) or self._guess[self.accepted] != token:
            return None
        self.accepted += 1
        return self._logits[:, self.accepted - 1]


class PlainDecoder:
    """Computes the whole window for every token: slow, and nothing to get wrong."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
        self.texts = Texts(prompts, max_window(model))
        self._model = model
        self._device = next(model.parameters()).device

    def next_logits(self) -> Tensor:
        """[batch, vocab]"""
        rows = []
        for text, start in zip(self.texts.ids, self.texts.starts(), strict=True):
            rows.append(self._model(torch.tensor([text[start:]], device=self._device))[:, -1])
        return torch.cat(rows)


Decoder = CachedDecoder | PlainDecoder
