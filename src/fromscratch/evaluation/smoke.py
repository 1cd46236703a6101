"""Smoke test: continuations of fixed prompts, so that models can be compared by eye."""

from dataclasses import dataclass

from fromscratch.formats.model_sources import LoadedModel
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.generation.texts import continue_prompts

PROMPTS = ("Every effort moves you", "Once upon a time", "The capital of France is", "In 1969,", "def main():")
NEW_TOKENS = 32
SAMPLING = Sampling(temperature=0.8, top_k=50)


@dataclass(frozen=True)
class SmokeText:
    """One prompt, continued twice."""

    prompt: str
    greedy: str
    sampled: str


def smoke_test(loaded: LoadedModel, *, seed: int = 0, tokens: int = NEW_TOKENS) -> list[SmokeText]:
    """Returns a greedy and a sampled continuation of every prompt."""
    greedy, sampled = (
        continue_prompts(
            loaded.model, loaded.tokenizer, PROMPTS, Settings(max_new_tokens=tokens, sampling=sampling, seed=seed)
        )
        for sampling in (Sampling(temperature=0), SAMPLING)
    )
    return [SmokeText(one.prompt, one.text, other.text) for one, other in zip(greedy, sampled, strict=True)]
