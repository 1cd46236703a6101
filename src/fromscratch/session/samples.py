"""Samples text during training and writes ``samples.txt``."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fromscratch.config.run import EvalConfig
from fromscratch.files import write_atomically
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.generation.texts import continue_prompts
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.states import Event
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.observers import SilentObserver

TRAINING_SAMPLING = Sampling(temperature=0.8, top_k=50)


def text_sampler(tokenizer: Tokenizer, settings: EvalConfig, *, seed: int) -> Callable[[nn.Module], list[str]]:
    """Returns a function that continues every prompt of ``[eval]``. It does not use training's random numbers."""

    def sample(model: nn.Module) -> list[str]:
        return [
            continue_text(model, tokenizer, prompt, max_new_tokens=settings.sample_tokens, seed=seed)
            for prompt in settings.prompts
        ]

    return sample


def continue_text(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    seed: int,
    sampling: Sampling = TRAINING_SAMPLING,
) -> str:
    """Returns the prompt with the model's continuation."""
    settings = Settings(max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    (result,) = continue_prompts(model, tokenizer, [prompt], settings)
    return prompt + result.text


class SamplesFile(SilentObserver):
    """Observer that writes ``samples.txt``: the sampled texts by step, each step once."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def on_event(self, event: str, facts: dict[str, Any]) -> None:
        """Rewrites the file from the events; merges duplicates, because a resumed run may sample a step twice."""
        if event != Event.SAMPLE:
            return
        by_step: dict[int, list[str]] = {}
        for record in read_records(self._run.events):
            if record.get("event") == Event.SAMPLE:
                texts = by_step.setdefault(record["step"], [])
                if record["text"] not in texts:
                    texts.append(record["text"])
        sections = [f"=== step {step} ===\n" + "\n---\n".join(by_step[step]) for step in sorted(by_step)]
        write_atomically(self._run.samples, "\n\n".join(sections) + "\n")
