"""Continues prompts as text: decodes ids while they come and ends texts at stop strings."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fromscratch.generation.decoders import CachedDecoder
from fromscratch.generation.generate import DecoderMaker, Settings, generate_batch
from fromscratch.tokenizers.base import Tokenizer

LENGTH, END_OF_TEXT, STOP = "length", "end-of-text", "stop"


@dataclass(frozen=True)
class Continuation:
    """The continuation of one prompt."""

    prompt: str
    text: str
    """Without the prompt, and without the stop string."""
    tokens: int
    """Number of new tokens, those of a stop string included."""
    ended: str
    """``length``, ``end-of-text`` or ``stop``."""


class GrowingText:
    """Decodes ids one by one. Holds back incomplete characters and a possible beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self._bytes_of = tokenizer.decode_stream(prompt)
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_shown = 0
        self.text = ""
        """The complete characters, up to the stop string."""
        self.tokens = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Appends an id; returns the text that it completes."""
        self.tokens += 1
        self._decode(self._bytes_of(token))
        return self._show(len(self.text) if self.stopped else len(self.text) - self._num_held_back())

    def rest(self) -> str:
        """Ends the text; returns what was held back."""
        self._decode(b"", final=True)
        return self._show(len(self.text))

    def _decode(self, new: bytes, final: bool = False) -> None:
        self.text += self._decoder.decode(new, final)
        if places := [place for stop in self._stop if (place := self.text.find(stop)) >= 0]:
            self.text, self.stopped = self.text[: min(places)], True

    def _show(self, end: int) -> str:
        new = self.text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return new

    def _num_held_back(self) -> int:
        """Returns the length of the longest suffix of the text that is a prefix of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        suffixes = (self.text[-length:] for length in range(min(longest, len(self.text)), 0, -1))
        return next((len(end) for end in suffixes if any(stop.startswith(end) for stop in self._stop)), 0)


def continue_prompts(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: Settings,
    *,
    on_text: Callable[[int, str], None] = lambda _row, _new: None,
    streams: Sequence[int] | None = None,
    decoder: DecoderMaker = CachedDecoder,
) -> list[Continuation]:
    """Continues every prompt. ``on_text`` receives the new text of a row as it is generated.

    ``streams`` numbers the random stream of each text; by default it is the place of the text in the batch.
    """
    encoded = [tokenizer.encode(prompt).tolist() for prompt in prompts]
    if not all(encoded):
        tokenizer.check_end_of_text("starts a text without a prompt; give a prompt")
    texts = [GrowingText(tokenizer, settings.stop, ids) for ids in encoded]
    rows = generate_batch(
        model,
        encoded,
        settings,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        streams=streams,
        decoder=decoder,
    )
    stopped: list[int] | None = None
    while True:
        try:
            tokens = rows.send(stopped)
        except StopIteration:
            break
        stopped = []
        for row, token in enumerate(tokens):
            if token is not None:
                on_text(row, texts[row].add(token))
                if texts[row].stopped:
                    stopped.append(row)
    for row, text in enumerate(texts):
        on_text(row, "" if text.stopped else text.rest())
    return [
        Continuation(prompt, text.text, text.tokens, _reason(text, settings.max_new_tokens))
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _reason(text: GrowingText, max_new_tokens: int) -> str:
    if text.stopped:
        return STOP
    return LENGTH if text.tokens == max_new_tokens else END_OF_TEXT
