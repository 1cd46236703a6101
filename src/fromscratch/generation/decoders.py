"""The scores of the next token, for a batch of texts that grow: with a cache, or by computing all anew.

Both see the same window of a text. A model with learned positions cannot go on past its context; once
a text is longer, the window drops its oldest quarter at a time, so that the cache is filled anew only
then. What a text's window is depends on that text alone, never on its neighbours in the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fromscratch.generation.packed import packed_twin, packing_pays
from fromscratch.models.cache import KeyValueCache
from fromscratch.models.gpt import GPT

SHARE_DROPPED = 4  # a quarter of the context


def window_start(num_tokens: int, context_length: int) -> int:
    """Where the window on a text of ``num_tokens`` begins."""
    if num_tokens <= context_length:
        return 0
    stride = max(1, context_length // SHARE_DROPPED)
    return -(-(num_tokens - context_length) // stride) * stride


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
    """Computes each position once."""

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
        self.texts = Texts(prompts, model.context_length)
        self._model = model
        self._device = model.token_embedding.weight.device
        longest = max(len(text) for text in self.texts.ids)
        capacity = min(model.context_length, longest + max_new_tokens)
        self._cache = KeyValueCache(capacity=capacity)
        self._starts: list[int] = []
        pays = packing_pays(model.token_embedding.weight, rows=len(prompts), steps=max_new_tokens)
        self._one_token_model = packed_twin(model) if pays else model

    def next_logits(self) -> Tensor:
        """[batch, vocab]"""
        starts = self.texts.starts()
        if starts == self._starts:
            tokens = torch.tensor([text[-1:] for text in self.texts.ids], device=self._device)
            return self._last_logits(self._one_token_model, tokens)
        self._starts = starts
        windows = [text[start:] for text, start in zip(self.texts.ids, starts, strict=True)]
        width = max(len(window) for window in windows)
        padding = [width - len(window) for window in windows]
        self._cache.begin(padding, self._device)
        padded = [[0] * missing + window for missing, window in zip(padding, windows, strict=True)]
        return self._last_logits(self._model, torch.tensor(padded, device=self._device))

    def _last_logits(self, model: GPT, tokens: Tensor) -> Tensor:
        return model.head(model.hidden_states(tokens, self._cache)[:, -1])


class PlainDecoder:
    """Computes the whole window for every token: slow, and nothing to get wrong."""

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
        self.texts = Texts(prompts, model.context_length)
        self._model = model
        self._device = next(model.parameters()).device

    def next_logits(self) -> Tensor:
        """[batch, vocab]"""
        rows = []
        for text, start in zip(self.texts.ids, self.texts.starts(), strict=True):
            rows.append(self._model(torch.tensor([text[start:]], device=self._device))[:, -1])
        return torch.cat(rows)


Decoder = CachedDecoder | PlainDecoder
