"""Measures the training loop without forward, backward and optimiser: prints a table, writes JSON.

    python benchmarks/loop.py [--steps 30] [--embedding-dim 320] [--context 128] [--global-batch 8] [--out loop.json]

Trains a model of about 10 million parameters by default on synthetic text, with the defaults of a run
file except fp32. A step lasts from one record to the next. The loop's time is the step's time without the
model's passes and the optimiser's update: batches, norm, clipping, collectives, records. Measures
the wall clock and the CPU time of the main thread, because other load does not increase CPU time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.machine.hardware import find_hardware
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from fromscratch.session.run import run_training
from fromscratch.sources.base import InMemory
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.training.observers import SilentObserver
from fromscratch.training.step import Stepper

WARM_UP_STEPS = 3


class Clock(SilentObserver):
    """Observer that measures the time of steps, and the time inside wrapped functions."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.inside = 0.0
        self.marks: list[tuple[float, float]] = []

    def on_step(self, record: dict[str, Any]) -> None:
        self.marks.append((self.now(), self.inside))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function, so that its time counts as ``inside``."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = self.now()
            result = function(*arguments, **options)
            self.inside += self.now() - begin
            return result

        return timed

    def milliseconds(self) -> tuple[float, float]:
        """Returns the medians of the whole step and of the loop's part."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))[WARM_UP_STEPS:]
        whole = [1e3 * (after[0] - before[0]) for before, after in pairs]
        inside = [1e3 * (after[1] - before[1]) for before, after in pairs]
        return statistics.median(whole), statistics.median(w - i for w, i in zip(whole, inside, strict=True))


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[int, list[Clock]]:
    """Trains in a folder; returns the number of parameters, a wall clock and a CPU clock."""
    tokens = arguments.steps * arguments.global_batch * arguments.context
    text = "the cat sees a large red house and the dog hears it " * (tokens // 200 + 2)
    texts = tuple(f"{text} {number}" for number in range(8))
    prepare_store([InMemory("synthetic", texts)], BytesTokenizer(), folder / "store", rule=SplitRule(0.0))
    model = {
        "num_layers": arguments.layers,
        "num_heads": 8,
        "embedding_dim": arguments.embedding_dim,
        "context_length": arguments.context,
    }
    train = {"global_batch": arguments.global_batch, "precision": "fp32", "evaluate_every": 0, "checkpoint_every": 0}
    train["clip"] = {"kind": "norm", "max_norm": 1.0}
    file = folder / "loop.toml"
    file.write_text(tomli_w.dumps({"model": model, "data": {"store": "store", "tokens": tokens}, "train": train}))
    plan = plan_run(file)
    clocks = [Clock(time.perf_counter), Clock(time.thread_time)]
    for clock in clocks:
        for owner, name in ((Stepper, "_forward"), (Stepper, "_backward"), (CompositeOptimizer, "step_unless")):
            setattr(owner, name, clock.around(getattr(owner, name)))
    path = folder / "runs" / "loop"
    placement = place_run(plan, RunDirectory(path), MachineOptions(device="cpu"))
    run_training(plan, path, placement, observers=[*clocks])
    return plan.costs.parameters, clocks


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--embedding-dim", type=int, default=320)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--global-batch", type=int, default=8)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parameters, clocks = measure(arguments, Path(folder))
    print(f"{parameters:,} parameters, {arguments.global_batch} x {arguments.context} tokens a step")
    print(f"{'time':<12} {'step ms':>9} {'loop ms':>9} {'fraction':>8}")
    rows = []
    for name, clock in zip(("wall", "main thread"), clocks, strict=True):
        whole, loop = clock.milliseconds()
        print(f"{name:<12} {whole:>9.1f} {loop:>9.2f} {loop / whole:>8.2%}")
        rows.append({"time": name, "step_ms": whole, "loop_ms": loop})
    if arguments.out:
        result = {**find_hardware("cpu").to_dict(), **vars(arguments), "parameters": parameters, "rows": rows}
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
