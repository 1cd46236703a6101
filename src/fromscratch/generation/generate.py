"""Continues a prompt, one token at a time."""

from collections.abc import Iterator, Sequence

import torch

from fromscratch.generation.sampling import Sampling
from fromscratch.models.gpt import GPT
from fromscratch.randomness import derive_seed


@torch.inference_mode()
def generate_tokens(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    end_of_text: int,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """New token ids, until ``max_new_tokens`` or the end of the text, which is not yielded.

    An empty prompt starts a new document. The model sees the last ``context_length`` tokens, so the
    window slides once the text is longer. The choice is made on the CPU from a generator of its
    own: the same seed gives the same text whatever else draws random numbers.

    Args:
        vocab_size: ids the tokenizer knows; a model padded beyond it never speaks the others.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, "generate"))
    device = next(model.parameters()).device
    tokens = [int(token) for token in prompt] or [end_of_text]
    try:
        for _ in range(max_new_tokens):
            window = torch.tensor([tokens[-model.context_length :]], device=device)
            logits = model(window)[:, -1, :vocab_size].float().cpu()
            token = int(sampling.choose(logits, generator))
            if token == end_of_text:
                return
            tokens.append(token)
            yield token
    finally:
        model.train(was_training)
