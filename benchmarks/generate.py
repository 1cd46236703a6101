"""Tokens per second of greedy generation, beside transformers' cached ``generate`` on the same weights.

GPT-2 small with random weights, fp32, a prompt of 32 tokens. The contestants take turns, so that a
busy machine slows all of them, and the median counts. Prints a table and writes
``benchmarks/results/generate.json``.

    python benchmarks/generate.py [--tokens 200] [--rounds 3] [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fromscratch.config.model import ModelConfig
from fromscratch.files import to_strict_json
from fromscratch.generation.generate import generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT

PROMPT_TOKENS = 32
VOCABULARY = 50_257
BATCHES = (1, 8)
RESULTS = Path(__file__).parent / "results" / "generate.json"


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="new tokens per text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contestants = make_contestants(options.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for measured in [False] + [True] * options.rounds:
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant()
            if measured:
                seconds[name].append(time.perf_counter() - began)
    report(seconds, options)


def make_contestants(num_tokens: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name; the number at the end of a name is the batch."""
    config = ModelConfig(preset="gpt2-small", vocab_size=VOCABULARY, dropout=0.0)
    model = build_empty(config, "cpu")
    initialise(model, config, seed=1)
    prompts = torch.randint(0, VOCABULARY - 1, (max(BATCHES), PROMPT_TOKENS)).tolist()
    contestants: dict[str, Callable[[], object]] = {}
    for batch in BATCHES:
        contestants[f"fromscratch {batch}"] = partial(ours, model.eval(), prompts[:batch], num_tokens)
    try:
        reference = transformers_model(model)
    except ImportError:
        print("transformers is not installed: nothing to compare with")
        return contestants
    for batch in BATCHES:
        contestants[f"transformers {batch}"] = partial(theirs, reference, prompts[:batch], num_tokens)
    return contestants


def ours(model: GPT, prompts: list[list[int]], num_tokens: int) -> list[list[int | None]]:
    """Greedy, to the last token."""
    sampling = Sampling(temperature=0)
    return list(generate_batch(model, prompts, max_new_tokens=num_tokens, sampling=sampling, seed=0, end_of_text=-1))


def transformers_model(model: GPT) -> torch.nn.Module:
    """A ``GPT2LMHeadModel`` with the weights of ours."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from fromscratch.formats.gpt2 import to_gpt2_tensors

    reference = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None)).eval()
    reference.load_state_dict(to_gpt2_tensors(dict(model.state_dict())), strict=False)
    return reference


def theirs(reference: torch.nn.Module, prompts: list[list[int]], num_tokens: int) -> object:
    """The same through ``generate``."""
    ids = torch.tensor(prompts)
    return reference.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )


def report(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    """A table, the two ratios that matter, and a file."""
    speed = {name: int(name.split()[-1]) * options.tokens / statistics.median(times) for name, times in seconds.items()}
    for name, tokens_per_second in speed.items():
        print(f"{name:<16} {tokens_per_second:8.1f} tokens/s   {[round(t, 2) for t in seconds[name]]} s")
    ratios = {"batch 8 to batch 1": speed["fromscratch 8"] / speed["fromscratch 1"]}
    for batch in BATCHES:
        if f"transformers {batch}" in speed:
            ratios[f"to transformers, batch {batch}"] = speed[f"fromscratch {batch}"] / speed[f"transformers {batch}"]
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"tokens_per_second": speed, "seconds": seconds, "ratios": ratios, "torch": torch.__version__}
    RESULTS.write_text(to_strict_json({**facts, **vars(options)}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
