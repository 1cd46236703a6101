"""Compares several processes with one process of as many threads: prints a table, writes JSON.

    python benchmarks/processes.py [--preset laptop-medium] [--context 256] [--global-batch 16]
                                   [--processes 2] [--rounds 3] [--steps 4] [--out processes.json]

Both train the same model on the same global batches of random tokens, in fp32, with the engine's step.
Every measurement starts new processes, and the rounds are interleaved. The ratio is that of the medians
over all steps, without the first two of each round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.machine.allocator import keep_freed_memory
from fromscratch.machine.hardware import find_hardware
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.optim.composite import as_composite
from fromscratch.processes.world import World, joined_world
from fromscratch.training.next_token import next_token_loss
from fromscratch.training.objective import MicroBatch
from fromscratch.training.parallelism import choose_parallelism
from fromscratch.training.step import GradientRules, Stepper

VOCABULARY = {"gpt2-small": 50_257, "laptop-small": 2_048, "laptop-medium": 8_192}
WARM_UP_STEPS = 2
WORKER = "FROMSCRATCH_BENCHMARK"


@dataclass(frozen=True)
class SharedTokens:
    """Random global batches; each process takes its local shard."""

    vocab_size: int
    context_length: int
    global_batch: int
    micro_batch: int
    world: World
    max_steps: int = 2**31

    def targets_in(self, step: int) -> int:
        return self.global_batch * self.context_length

    def num_micro_batches(self, step: int) -> int:
        return -(-self.global_batch // (self.world.size * self.micro_batch))

    def smaller(self) -> None:
        """Returns None: a measurement must not change its micro-batch."""

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        generator = torch.Generator().manual_seed(step)
        shape = (self.global_batch, self.context_length + 1)
        tokens = torch.randint(0, self.vocab_size, shape, generator=generator)
        rows = self.world.local_shard(range(self.global_batch))
        for begin in range(0, len(rows), self.micro_batch):
            here = rows[begin : begin + self.micro_batch]
            part = tokens[here[0] : here[-1] + 1]
            yield MicroBatch(part[:, :-1], part[:, 1:], tuple(here))


def work(request: dict[str, Any]) -> None:
    """Runs the steps; the main process prints the seconds of each."""
    torch.set_num_threads(request["threads"])
    keep_freed_memory()
    config, train = GPTConfig.model_validate(request["model"]), TrainConfig()
    assert config.vocab_size is not None
    with joined_world("cpu") as world:
        model = build_empty(config, "cpu")
        initialise(model, config, seed=0)
        batches = SharedTokens(
            config.vocab_size, config.context_length, request["global_batch"], request["micro_batch"], world
        )
        stepper = Stepper(
            model,
            as_composite(train.optimizer.build(list(model.named_parameters()))),
            batches,
            loss=next_token_loss,
            rules=GradientRules(train.clip.build(), train.nonfinite.build()),
            precision=Precision("fp32", torch.device("cpu")),
            parallelism=choose_parallelism(world),
        )
        seconds = []
        for step in range(WARM_UP_STEPS + request["steps"]):
            world.barrier()
            begin = time.perf_counter()
            loss = float(stepper.take(step, 0.1).loss)
            seconds.append(time.perf_counter() - begin)
        if world.is_main:
            parameters = sum(p.numel() for p in model.parameters())
            print(json.dumps({"seconds": seconds[WARM_UP_STEPS:], "loss": loss, "parameters": parameters}))


def measure(processes: int, request: dict[str, Any]) -> dict[str, Any]:
    """Runs one measurement in new processes."""
    environment = {**os.environ, WORKER: json.dumps(request), "OMP_NUM_THREADS": str(request["threads"])}
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launch, __file__], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Runs the benchmark."""
    arguments = parse()
    model = {
        "preset": arguments.preset,
        "vocab_size": VOCABULARY[arguments.preset],
        "context_length": arguments.context,
        "dropout": 0.0,
    }
    request = {"model": model, **{key: vars(arguments)[key] for key in ("global_batch", "micro_batch", "steps")}}
    found: dict[int, list[dict[str, Any]]] = {1: [], arguments.processes: []}
    for _ in range(arguments.rounds):
        for processes, measurements in found.items():
            threads = arguments.processes // processes
            measurements.append(measure(processes, {**request, "threads": threads}))
    tokens = arguments.global_batch * arguments.context
    rows = []
    for processes, measurements in found.items():
        seconds = statistics.median(s for measurement in measurements for s in measurement["seconds"])
        result = {"processes": processes, "threads": arguments.processes // processes}
        rows.append({**result, "tokens_per_second": tokens / seconds, "step_seconds": seconds, "rounds": measurements})
    print(f"{found[1][0]['parameters']:,} parameters, {tokens:,} tokens a step")
    print(f"{'processes':>9} {'threads':>7} {'tokens/s':>10} {'ratio':>6}")
    for row in rows:
        ratio = row["tokens_per_second"] / rows[0]["tokens_per_second"]
        print(f"{row['processes']:>9} {row['threads']:>7} {row['tokens_per_second']:>10,.0f} {ratio:>6.3f}")
    if arguments.out:
        result = {**find_hardware("cpu").to_dict(), **vars(arguments), "rows": rows}
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="laptop-medium", choices=VOCABULARY)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out")
    return parser.parse_args()


if __name__ == "__main__":
    if WORKER in os.environ:
        work(json.loads(os.environ[WORKER]))
    else:
        main()
