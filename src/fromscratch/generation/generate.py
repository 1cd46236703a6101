"""Continues prompts, one token at a time."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fromscratch.errors import UsageError
from fromscratch.generation.decoders import CachedDecoder, Decoder
from fromscratch.generation.sampling import Sampling
from fromscratch.randomness import derive_seed

DecoderMaker = Callable[..., Decoder]


@dataclass(frozen=True)
class Settings:
    """Settings of generation.

    Raises:
        UsageError: an empty stop string, or a negative number of tokens.
    """

    max_new_tokens: int = 100
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Stop strings: a text ends before the first of them. Only ``texts.continue_prompts`` uses them."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UsageError(f"max_new_tokens = {self.max_new_tokens}: must be 0 or more")
        if "" in self.stop:
            raise UsageError("stop = '': every text contains the empty string; leave it out for none")


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    end_of_text: int,
    vocab_size: int | None = None,
    streams: Sequence[int] | None = None,
    decoder: DecoderMaker = CachedDecoder,
) -> Generator[list[int | None], list[int] | None, None]:
    """Yields the new id of every text, step by step; None for a text that has ended.

    A text ends with the end-of-text id, which is not yielded, or when the consumer sends its index
    (``rows.send([index])``). All end after ``max_new_tokens``. An empty prompt starts a new document.
    The model sees at most the last ``context_length`` tokens (see ``decoders.window_start``).

    Each text has its own random generator on the CPU, seeded from the seed and the number of its stream. So a text
    depends neither on other uses of random numbers nor on the number of texts.

    Args:
        vocab_size: number of ids of the tokenizer; the other ids of a padded model are never chosen.
        streams: the number of each text's random stream; by default its place in the batch.
        decoder: computes the logits.
    """
    count = len(prompts)
    numbers = range(count) if streams is None else streams
    generators = [torch.Generator().manual_seed(derive_seed(settings.seed, "generate", n)) for n in numbers]
    ended = [False] * count
    was_training = model.training
    model.eval()
    try:
        first = [list(prompt) or [end_of_text] for prompt in prompts]
        batch = decoder(model, first, max_new_tokens=settings.max_new_tokens)
        for _ in range(settings.max_new_tokens):
            if all(ended):
                return
            with torch.inference_mode():
                logits = settings.sampling.penalised(batch.next_logits()[:, :vocab_size], batch.texts.ids)
                tokens = settings.sampling.choose(logits, generators)
            ended = [done or token == end_of_text for done, token in zip(ended, tokens, strict=True)]
            batch.texts.append(tokens)
            if all(ended):
                return
            stopped = yield [None if done else token for done, token in zip(ended, tokens, strict=True)]
            for row in stopped or ():
                ended[row] = True
    finally:
        model.train(was_training)
