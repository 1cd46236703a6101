"""Compares the training step of two checkouts of this repository: prints a table, writes JSON.

    git worktree add /tmp/before HEAD~20
    python benchmarks/versions.py /tmp/before [--rounds 12] [--json versions.json]

A process per version takes single steps in turns (before, now, now, before), so that other load on the machine meets
both alike. Measures CPU seconds of one thread on random tokens; the default is a model of the quickstart's size. The
ratio of a round is now / before; below 1 is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
MODEL = {"kind": "gpt", "preset": "laptop-small", "vocab_size": 2_048, "tied_head": False}
TRAIN = {"clip": {"kind": "norm", "max_norm": 1.0}}
WARM_UP_STEPS = 3
CASES = [
    {"attention": attention, "precision": precision, "dropout": dropout}
    for attention in ("explicit", "sdpa")
    for precision in ("fp32", "bf16")
    for dropout in (0.1, 0.0)
]


def serve(case: dict[str, Any]) -> None:
    """Builds the model of a case; then takes a step for each line of stdin, and prints its CPU seconds."""
    import torch

    from fromscratch.config.run import parse_model
    from fromscratch.config.train import TrainConfig
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.machine.precision import Precision
    from fromscratch.planning.bench import Case
    from fromscratch.planning.bench_worker import RATE_FACTOR, build_stepper, random_objective
    from fromscratch.training.objective import Runtime

    torch.set_num_threads(1)
    model = parse_model({**MODEL, "attention": case["attention"], "dropout": case["dropout"]})
    runtime = Runtime(
        torch.device("cpu"), case["micro_batch"], Precision(case["precision"], find_hardware("cpu").device)
    )
    settings = Case(micro_batch=case["micro_batch"], precision=case["precision"])
    train = TrainConfig.model_validate({**TRAIN, "precision": case["precision"]})
    stepper = build_stepper(model, train, settings, random_objective(model, runtime), runtime)
    for step, _ in enumerate(sys.stdin):
        begin = time.process_time()
        stepper.take(step, RATE_FACTOR)
        print(time.process_time() - begin, flush=True)


def take_step(version: "subprocess.Popen[str]") -> float:
    """Lets a version take one step; returns its CPU seconds."""
    assert version.stdin is not None and version.stdout is not None
    print(file=version.stdin, flush=True)
    return float(version.stdout.readline())


def compare(case: dict[str, Any], checkouts: list[Path], rounds: int) -> dict[str, Any]:
    """Measures one case in both versions."""
    command = [sys.executable, __file__, "--serve", json.dumps(case)]
    versions = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for checkout in checkouts
    ]
    for version in versions:
        for _ in range(WARM_UP_STEPS):
            take_step(version)
    seconds: list[list[float]] = [[], []]
    ratios = []
    for _ in range(rounds):
        taken = [(index, take_step(versions[index])) for index in (0, 1, 1, 0)]
        before, now = (sum(value for index, value in taken if index == wanted) for wanted in (0, 1))
        seconds[0].append(before / 2)
        seconds[1].append(now / 2)
        ratios.append(now / before)
    for version in versions:
        version.communicate()
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return {
        **case,
        **{"before_ms": 1e3 * statistics.median(seconds[0]), "now_ms": 1e3 * statistics.median(seconds[1])},
        **{"ratio": median, "lower_quartile": lower, "upper_quartile": upper},
    }


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="The other checkout.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return
    if arguments.before is None:
        parser.error("name the other checkout")
    print(f"{'attention':10} {'precision':10} {'dropout':>8} {'before ms':>10} {'now ms':>8}  now/before (quartiles)")
    rows = []
    for case in CASES:
        row = compare({**case, "micro_batch": arguments.micro_batch}, [arguments.before, HERE], arguments.rounds)
        rows.append(row)
        print(
            f"{row['attention']:10} {row['precision']:10} {row['dropout']:8} {row['before_ms']:10.1f} "
            f"{row['now_ms']:8.1f}  {row['ratio']:.3f} ({row['lower_quartile']:.3f} to {row['upper_quartile']:.3f})",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
