"""Measures tokens per second of generation, compared with transformers' cached ``generate``.

The model is GPT-2 small with random weights, fp32, a prompt of 32 tokens, greedy; or ``--model``. A single
text is also generated without speculative tokens, and by transformers with its prompt lookup. The gain of
prompt lookup depends on how often the text repeats itself; greedy text of random weights repeats itself
soon. The candidates take turns, so that other load on the machine slows all of them. The results are
medians. Prints a table and writes ``benchmarks/results/generate.json``.

    python benchmarks/generate.py [--tokens 200] [--rounds 3] [--threads 2] [--model MODEL] [--temperature 0.8]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fromscratch.config.model import GPTConfig
from fromscratch.files import to_strict_json
from fromscratch.generation.decoders import DRAFT_TOKENS, CachedDecoder
from fromscratch.generation.generate import Settings, generate_batch
from fromscratch.generation.sampling import Sampling
from fromscratch.models.factory import build_empty, initialise
from fromscratch.models.gpt import GPT

PROMPT_TOKENS = 32
BATCHES = (1, 8)
RESULTS = Path(__file__).parent / "results" / "generate.json"
Candidates = dict[str, Callable[[], object]]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="new tokens per text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", help="a run, a folder or a name on the Hub, of GPT-2's shape; random weights else")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; other values skip transformers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    candidates = make_candidates(options)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for measured in [False] + [True] * options.rounds:
        for name, candidate in candidates.items():
            began = time.perf_counter()
            candidate()
            if measured:
                seconds[name].append(time.perf_counter() - began)
    report(seconds, options)


def make_candidates(options: argparse.Namespace) -> Candidates:
    """Returns the candidates by name; a name ends with its batch size."""
    model, config = find_model(options.model)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, model.vocab_size - 1, (max(BATCHES), PROMPT_TOKENS), generator=generator).tolist()
    no_lookup = partial(CachedDecoder, draft_tokens=0)
    candidates: Candidates = {"fromscratch, no lookup 1": partial(ours, model, prompts[:1], options, no_lookup)}
    for batch in BATCHES:
        candidates[f"fromscratch {batch}"] = partial(ours, model, prompts[:batch], options, CachedDecoder)
    if options.temperature or PROMPT_TOKENS + options.tokens > model.context_length:
        print("transformers is not measured: it samples other tokens and stops at the context length")
        return candidates
    try:
        reference = transformers_model(model, config)
    except ImportError:
        print("transformers is not installed: it is not measured")
        return candidates
    for batch in BATCHES:
        candidates[f"transformers {batch}"] = partial(theirs, reference, prompts[:batch], options.tokens)
    with_lookup = partial(theirs, reference, prompts[:1], options.tokens, prompt_lookup_num_tokens=DRAFT_TOKENS)
    candidates["transformers, lookup 1"] = with_lookup
    return candidates


def find_model(source: str | None) -> tuple[GPT, GPTConfig]:
    """Opens the named model, or creates GPT-2 small with random weights."""
    if source is not None:
        from fromscratch.formats.model_sources import open_model
        from fromscratch.machine.hardware import find_hardware

        loaded = open_model(source, find_hardware("cpu"))
        return loaded.model.eval(), loaded.config
    config = GPTConfig(preset="gpt2-small", vocab_size=50_257, dropout=0.0)
    model = build_empty(config, "cpu")
    initialise(model, config, seed=1)
    return model.eval(), config


def ours(
    model: GPT, prompts: list[list[int]], options: argparse.Namespace, decoder: Callable[..., CachedDecoder]
) -> list[list[int | None]]:
    """Generates with fromscratch, without stopping at the end-of-text token."""
    settings = Settings(options.tokens, Sampling(temperature=options.temperature))
    return list(generate_batch(model, prompts, settings, end_of_text=-1, decoder=decoder))


def transformers_model(model: GPT, config: GPTConfig) -> torch.nn.Module:
    """Returns a ``GPT2LMHeadModel`` with the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from fromscratch.formats.gpt2 import to_gpt2_tensors
    from fromscratch.publishing.export import native_config

    shape = {**native_config(config), "bos_token_id": None, "eos_token_id": None}
    reference = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    reference.load_state_dict(to_gpt2_tensors(dict(model.state_dict())), strict=False)
    return reference


def theirs(reference: torch.nn.Module, prompts: list[list[int]], num_tokens: int, **settings: int) -> object:
    """Generates with transformers."""
    ids = torch.tensor(prompts)
    return reference.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        **settings,
    )


def report(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Prints speeds and ratios; writes the JSON file."""
    speed = {name: int(name.split()[-1]) * options.tokens / statistics.median(times) for name, times in seconds.items()}
    for name, tokens_per_second in speed.items():
        print(f"{name:<26} {tokens_per_second:8.1f} tokens/s   {[round(t, 2) for t in seconds[name]]} s")
    pairs = [
        ("fromscratch 8", "fromscratch, no lookup 1"),
        ("fromscratch, no lookup 1", "transformers 1"),
        ("fromscratch 1", "transformers 1"),
        ("fromscratch 1", "transformers, lookup 1"),
        ("fromscratch 8", "transformers 8"),
    ]
    ratios = {f"{a} / {b}": speed[a] / speed[b] for a, b in pairs if a in speed and b in speed}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"tokens_per_second": speed, "seconds": seconds, "ratios": ratios, "torch": torch.__version__}
    RESULTS.write_text(to_strict_json({**result, **vars(options)}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
