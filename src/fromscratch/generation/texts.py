"""Prompts to texts: what a person sees of generation, as it comes or at the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fromscratch.errors import UsageError
from fromscratch.generation.decoders import CachedDecoder
from fromscratch.generation.generate import DecoderMaker, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.tokenizers.base import Tokenizer

LONGEST_CHARACTER_BYTES = 4  # of UTF-8
LENGTH, END_OF_TEXT, STOP = "length", "end-of-text", "stop"


@dataclass(frozen=True)
class Settings:
    """How texts are continued.

    Raises:
        UsageError: an empty stop string.
    """

    max_new_tokens: int = 100
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[str, ...] = ()
    """A text ends before the first of these that the model writes."""

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise UsageError("stop = '': every text holds the empty string; leave it out for none")


@dataclass(frozen=True)
class Continuation:
    """What a model added to one prompt."""

    prompt: str
    text: str
    """Without the prompt, and without the stop string."""
    tokens: int
    """Ids the model wrote, a stop string's included."""
    ended: str
    """``length``, ``end-of-text`` or ``stop``."""


class GrowingText:
    """The text of ids that come one by one: whole characters, and nothing of what may become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._bytes = b""
        self._shown = 0
        self.tokens = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """All of it, up to the stop string."""
        return self._cut(self._bytes.decode("utf-8", "replace"))

    def add(self, token: int) -> str:
        """Takes in an id; returns what can now be shown that could not before."""
        self.tokens += 1
        self._bytes += self._tokenizer.decode_bytes([token])
        whole = self._bytes[: _whole_characters(self._bytes)].decode("utf-8", "replace")
        text = self._cut(whole)
        self.stopped = len(text) < len(whole)
        return self._show(text if self.stopped else text[: len(text) - self._may_become_stop(text)])

    def rest(self) -> str:
        """What was held back and can be shown now that nothing follows."""
        return self._show(self.text)

    def _show(self, text: str) -> str:
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new

    def _cut(self, text: str) -> str:
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text

    def _may_become_stop(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


def _whole_characters(content: bytes) -> int:
    """Length of the part that does not end in the middle of a UTF-8 character."""
    for back in range(1, min(LONGEST_CHARACTER_BYTES, len(content)) + 1):
        byte = content[-back]
        if byte >= 0xC0:  # begins a character of two to four bytes
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(content) - back if back < needed else len(content)
        if byte < 0x80:
            break
    return len(content)


def continue_prompts(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: Settings,
    *,
    on_text: Callable[[int, str], None] = lambda _row, _piece: None,
    decoder: DecoderMaker = CachedDecoder,
) -> list[Continuation]:
    """What the model adds to each prompt; ``on_text`` is told every piece (row, text) as it comes."""
    growing = [GrowingText(tokenizer, settings.stop) for _ in prompts]
    rows = generate_batch(
        model,
        [[int(token) for token in tokenizer.encode(prompt)] for prompt in prompts],
        max_new_tokens=settings.max_new_tokens,
        sampling=settings.sampling,
        seed=settings.seed,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        decoder=decoder,
    )
    ended: list[int] | None = None
    while True:
        try:
            tokens = rows.send(ended)
        except StopIteration:
            break
        ended = []
        for row, token in enumerate(tokens):
            if token is not None:
                on_text(row, growing[row].add(token))
                if growing[row].stopped:
                    ended.append(row)
    for row, text in enumerate(growing):
        on_text(row, "" if text.stopped else text.rest())
    return [
        Continuation(prompt, text.text, text.tokens, _why(text, settings.max_new_tokens))
        for prompt, text in zip(prompts, growing, strict=True)
    ]


def _why(text: GrowingText, max_new_tokens: int) -> str:
    if text.stopped:
        return STOP
    return LENGTH if text.tokens == max_new_tokens else END_OF_TEXT
