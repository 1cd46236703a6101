"""Compares the training engine with the reference recipe: prints a table, writes JSON.

    python benchmarks/train.py [--preset gpt2-small] [--context 512] [--micro-batch 2] [--dropout 0.0]
                               [--rounds 3] [--steps 3] [--out benchmarks/train.json]

The reference recipe is explicit attention, eager mode, an unfused optimiser and full logits, in fp16
autocast on a GPU and fp32 on a CPU. Every measurement starts a new process, and the rounds are
interleaved. The ratios are of medians over all rounds.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.machine.acceleration import compile_problem
from fromscratch.machine.hardware import find_hardware
from fromscratch.planning.bench import Case, PeakFlops, Row, Workload, measure, reference_cases, summarise

VOCABULARY = {"gpt2-small": 50_257, "gpt2-medium": 50_257, "laptop-small": 2_048, "laptop-medium": 8_192}


def main() -> None:
    """Runs the benchmark."""
    arguments = parse()
    hardware = find_hardware(arguments.device)
    compiled = hardware.device.type == "cuda" and not compile_problem(hardware.device, "bf16")
    workload = Workload(model_of(arguments), TrainConfig())
    cases = [Case(arguments.micro_batch, precision, compile=compiled) for precision in ("fp32", "bf16")]
    cases = [*reference_cases(workload.model, hardware, [arguments.micro_batch]), *cases]
    peak = PeakFlops(hardware)
    found = measure(
        workload,
        cases,
        hardware,
        steps=arguments.steps,
        rounds=arguments.rounds,
        peak=peak,
        on_progress=lambda s: print(s, file=sys.stderr),
    )
    rows = [summarise(measurement, workload, peak) for measurement in found]
    show(rows)
    result: dict[str, Any] = {**hardware.to_dict(), **vars(arguments), "rows": [asdict(row) for row in rows]}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt2-small", choices=VOCABULARY)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--head", default="chunked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--out")
    return parser.parse_args()


def model_of(arguments: argparse.Namespace) -> GPTConfig:
    """Returns the model's config, the same for both recipes."""
    return GPTConfig.model_validate(
        {
            "preset": arguments.preset,
            "vocab_size": VOCABULARY[arguments.preset],
            "context_length": arguments.context,
            "dropout": arguments.dropout,
            "attention": arguments.attention,
            "head": arguments.head,
        }
    )


def show(rows: list[Row]) -> None:
    """Prints a row per case, with its ratio to the first row, the reference."""
    base = rows[0].tokens_per_second
    print(f"{'recipe':<10} {'precision':<9} {'mode':<8} {'tokens/s':>10} {'ratio':>6} {'MFU':>7} {'MiB':>7}")
    for row in rows:
        speed, mfu = row.tokens_per_second, row.mfu
        if speed is None:
            print(f"{row.recipe:<10} {row.precision:<9} {row.error}")
            continue
        ratio = f"{speed / base:.2f}" if base else "?"
        mfu_text = "unknown" if mfu is None else f"{mfu:.1%}"
        mode = "compiled" if row.compile else "eager"
        memory = (row.peak_memory_bytes or 0) / 2**20
        print(f"{row.recipe:<10} {row.precision:<9} {mode:<8} {speed:>10,.0f} {ratio:>6} {mfu_text:>7} {memory:>7,.0f}")


if __name__ == "__main__":
    main()
