"""Continues a text token by token for the playground, and says how probable every token was.

Letters: T tokens of a text, V ids of the tokenizer.
"""

import codecs
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fromscratch.errors import UsageError
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.generation.decoders import CachedDecoder, max_window
from fromscratch.generation.generate import Settings
from fromscratch.generation.texts import LENGTH
from fromscratch.randomness import derive_seed

END_OF_TEXT = "end-of-text"
MAX_SHOWN = 300
"""Tokens of a distribution that are sent one by one; the rest is sent in bins."""
BIN_NATS = 0.25
"""Width of a bin of the other tokens by log-probability: with it, temperatures give the right mass to about 1%."""
MAX_WINDOW = 2_048
MAX_NEW_TOKENS = 256
MAX_APPENDED = 8
"""With more new tokens in a text, one pass over all of it is faster."""

Token = dict[str, Any]


class Continuer:
    """The text that a model is asked about; a text that continues the last one is not computed again."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._window = min(max_window(self._model), MAX_WINDOW)
        self._ids: list[int] = []
        self._tokens: list[Token] = []
        self._room = 0
        self._decoder: CachedDecoder
        self._log_probabilities: Tensor  # [V] of the next token

    def ids_of(self, text: str, more: Sequence[int]) -> list[int]:
        """Returns the ids of a text, and of what was chosen to follow it. Raises UsageError."""
        ids = [*self._tokenizer.encode(text).tolist(), *more]
        if unknown := [token for token in more if not 0 <= token < self._tokenizer.vocab_size]:
            raise UsageError(f"token {unknown[0]}: the model knows 0 to {self._tokenizer.vocab_size - 1}")
        if not ids:
            self._tokenizer.check_end_of_text("starts a text without a prompt; type a prompt")
            ids = [self._tokenizer.end_of_text]
        return ids

    def notices(self, num_tokens: int) -> list[str]:
        """What a reader should know of a text of so many tokens."""
        if num_tokens <= self._window:
            return []
        return [f"the text has {num_tokens:,} tokens; the model sees at most the last {self._window:,}, shown here"]

    def read(self, ids: list[int], max_new_tokens: int) -> list[Token]:
        """Returns the tokens of a text that the model sees, each with its surprise in bits; then continues from there.

        Args:
            max_new_tokens: the most that will be asked for, up to ``MAX_NEW_TOKENS``.
        """
        num_new = len(ids) - len(self._ids)
        has_room = num_new + max_new_tokens <= self._room
        if self._ids and 0 <= num_new <= MAX_APPENDED and has_room and ids[: len(self._ids)] == self._ids:
            for token in ids[len(self._ids) :]:
                self._append(token, chance=None)
            return self._tokens[-self._window :]
        seen = ids[-self._window :]
        bits = self._surprises(seen)
        self._ids, self._tokens = [], []
        for place, (token, surprise) in enumerate(zip(seen, bits, strict=True)):
            self._tokens.append({**self._named(token, seen[:place]), "bits": surprise})
        self._decoder = CachedDecoder(self._model, [seen], max_new_tokens=MAX_NEW_TOKENS, draft_tokens=0)
        self._look()
        self._ids, self._room = list(ids), MAX_NEW_TOKENS
        return list(self._tokens)

    def continue_text(self, settings: Settings, on_token: Callable[[Token], None]) -> str:
        """Chooses tokens and hands each over; returns why it ended.

        The random numbers depend on the seed and the length of the text: one token at a time gives the same text.
        """
        for _ in range(settings.max_new_tokens):
            seed = derive_seed(settings.seed, "generate", len(self._ids))
            logits = self._log_probabilities[None]
            (token,) = settings.sampling.choose(logits, [torch.Generator().manual_seed(seed)])
            is_greedy = settings.sampling.temperature == 0
            chance = 1.0 if is_greedy else float(settings.sampling.probabilities(logits)[0, token])
            self._append(token, chance=chance)
            on_token(self._tokens[-1])
            if token == self._tokenizer.end_of_text:
                return END_OF_TEXT
        return LENGTH

    def distribution(self) -> dict[str, Any]:
        """Returns the distribution of the next token, before sampling settings reshape it.

        ``top`` holds tokens with ``logp``, the natural logarithm of the probability, highest first. ``rest`` holds
        the others in bins: [number of tokens, logarithm of their mean probability].
        """
        logp = self._log_probabilities
        values, ids = logp.topk(min(MAX_SHOWN, len(logp)))
        others = torch.ones_like(logp, dtype=torch.bool).index_fill(0, ids, False) & logp.isfinite()
        rest = logp[others]
        bins: list[tuple[int, float]] = []
        if len(rest):
            numbers = (rest / BIN_NATS).floor().long()
            for number in numbers.unique().flip(0):
                inside = rest[numbers == number]
                bins.append((len(inside), float(inside.logsumexp(0)) - math.log(len(inside))))
        seen = self._decoder.texts.ids[0]
        top = [
            {**self._named(token, seen), "logp": value}
            for token, value in zip(ids.tolist(), values.tolist(), strict=True)
            if math.isfinite(value)
        ]
        entropy = float(-(logp.exp() * logp.clamp(min=-1e4)).sum() / math.log(2))
        return {"top": top, "rest": bins, "entropy": entropy, "vocabulary": len(logp)}

    def _append(self, token: int, *, chance: float | None) -> None:
        surprise = -float(self._log_probabilities[token]) / math.log(2)
        seen = self._decoder.texts.ids[0]
        self._tokens.append({**self._named(token, seen), "bits": surprise, "chance": chance})
        ids, self._ids = self._ids, []  # should the model fail, the next question begins anew
        self._decoder.texts.append([token])
        self._look()
        self._ids, self._room = [*ids, token], self._room - 1

    def _look(self) -> None:
        self._model.eval()
        with torch.inference_mode():
            logits = self._decoder.next_logits()[0, : self._tokenizer.vocab_size]
        self._log_probabilities = logits.double().log_softmax(-1)

    def _surprises(self, ids: Sequence[int]) -> list[float | None]:
        """Bits of each token of a text [T] given those before it; None for the first, which nothing predicts."""
        self._model.eval()
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            logits = self._model(tokens)[0, :-1, : self._tokenizer.vocab_size].float()  # [T - 1, V]
            return [None, *(F.cross_entropy(logits, tokens[0, 1:], reduction="none") / math.log(2)).tolist()]

    def _named(self, token: int, before: Sequence[int]) -> Token:
        """A token's id and text, or a word for what has no text."""
        if token == self._tokenizer.end_of_text:
            return {"id": token, "text": "", "name": "end of text"}
        data = self._tokenizer.decode_stream(before[-16:])(token)
        if not data:
            return {"id": token, "text": "", "name": f"control token {token}"}
        try:
            return {"id": token, "text": data.decode()}
        except UnicodeDecodeError:
            text = codecs.decode(data, "utf-8", "replace")
            shown = data.hex(" ")
            return {"id": token, "text": text, "name": f"part of a character, bytes {shown}", "bytes": shown}
