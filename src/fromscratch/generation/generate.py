"""Continues prompts, one token at a time."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fromscratch.generation.decoders import CachedDecoder, Decoder
from fromscratch.generation.sampling import Sampling
from fromscratch.randomness import derive_seed

DecoderMaker = Callable[..., Decoder]
Rows = Generator[list[int | None], list[int] | None, None]


def generate_tokens(model: Any, prompt: Sequence[int], **options: Any) -> Iterator[int]:
    """Yields the new ids of one text: ``generate_batch`` with a batch of one, and its options."""
    for (token,) in generate_batch(model, [prompt], **options):
        if token is not None:
            yield token


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    end_of_text: int,
    vocab_size: int | None = None,
    decoder: DecoderMaker = CachedDecoder,
) -> Rows:
    """Yields the new id of every text, step by step; None for a text that has ended.

    A text ends with the end-of-text id, which is not yielded, or when the consumer sends its number
    (``rows.send([number])``). All end after ``max_new_tokens``. An empty prompt starts a new document.
    The model sees the last ``context_length`` tokens at most (see ``decoders.window_start``).

    Text ``i`` has its own random generator, named by the seed and ``i``, on the CPU. The same seed gives the
    same text, whatever else draws random numbers and however many texts follow.

    Args:
        vocab_size: ids the tokenizer knows; other ids of a padded model are never chosen.
        decoder: computes the logits.
    """
    was_training = model.training
    model.eval()
    try:
        yield from _steps(
            decoder(model, [list(prompt) or [end_of_text] for prompt in prompts], max_new_tokens=max_new_tokens),
            _Choice(sampling, seed, len(prompts)),
            max_new_tokens=max_new_tokens,
            end_of_text=end_of_text,
            vocab_size=vocab_size,
        )
    finally:
        model.train(was_training)


def _steps(
    decoder: Decoder, choice: "_Choice", *, max_new_tokens: int, end_of_text: int, vocab_size: int | None
) -> Rows:
    ended = [False] * len(decoder.texts.ids)
    for _ in range(max_new_tokens):
        if all(ended):
            return
        with torch.inference_mode():
            tokens = choice.choose(decoder.next_logits()[:, :vocab_size], decoder.texts.ids)
        ended = [done or token == end_of_text for done, token in zip(ended, tokens, strict=True)]
        decoder.texts.append(tokens)
        if all(ended):
            return
        finished = yield [None if done else token for done, token in zip(ended, tokens, strict=True)]
        for row in finished or ():
            ended[row] = True


class _Choice:
    """Chooses the next id of every text, each from its own random generator."""

    def __init__(self, sampling: Sampling, seed: int, num_texts: int) -> None:
        self._sampling = sampling
        self._generators = [
            torch.Generator().manual_seed(derive_seed(seed, "generate", index)) for index in range(num_texts)
        ]

    def choose(self, logits: Tensor, texts: list[list[int]]) -> list[int]:
        if self._sampling.repetition_penalty != 1.0:
            logits = torch.cat(
                [
                    self._sampling.penalised(row[None], _known(text, logits))
                    for row, text in zip(logits, texts, strict=True)
                ]
            )
        if self._sampling.greedy:
            return logits.argmax(dim=-1).tolist()
        scores = logits.cpu()
        return [
            int(self._sampling.choose(row[None], generator))
            for row, generator in zip(scores, self._generators, strict=True)
        ]


def _known(text: list[int], logits: Tensor) -> Tensor:
    """The ids of a text that have a score, [1, n]."""
    ids = [token for token in set(text) if token < logits.shape[-1]]
    return torch.tensor([ids], dtype=torch.long, device=logits.device)
