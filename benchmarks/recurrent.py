"""Measures a training step of a recurrent model against a bare torch loop: prints a table, writes JSON.

    python benchmarks/recurrent.py [--kind lstm] [--preset char-rnn] [--hidden-dim N] [--lanes 50] [--dropout 0.5]
                                   [--vocabulary 88] [--steps 20] [--threads 1] [--out recurrent.json]

The bare loop is what a tutorial writes: torch's layers in one module with its own dropout, a linear head, mean
cross-entropy, a state detached after each step, clipping by norm, AdamW. The engine's step does the same and keeps its
promises: dropout that no division of the batch changes, checks of the gradients, a carry that is held back with the
step. Steps of both alternate, so that other load on the machine meets both; the ratio is the median over pairs of
steps. CPU time does not count other processes at all.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from fromscratch.config.run import parse_model
from fromscratch.config.train import TrainConfig
from fromscratch.data.lanes import LaneBatches
from fromscratch.data.store import TokenSplit
from fromscratch.machine.allocator import keep_freed_memory
from fromscratch.machine.hardware import find_hardware
from fromscratch.machine.memory import default_micro_batch
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.optim.composite import as_composite
from fromscratch.planning.bench_worker import RandomTokens
from fromscratch.training.next_token import NextToken
from fromscratch.training.objective import Runtime
from fromscratch.training.step import GradientRules, Stepper

WARM_UP_STEPS = 3
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CPU = torch.device("cpu")
Step = Callable[[int], object]


class BareModel(nn.Module):
    """torch's layers with dropout between them and after the last one, and a linear head."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        dropout = config.dropout if config.num_layers > 1 else 0.0
        sizes = {"num_layers": config.num_layers, "batch_first": True, "dropout": dropout}
        self.layers = LAYERS[config.kind](config.vocab_size, config.hidden_dim, **sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size)

    def forward(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        x, state = self.layers(F.one_hot(tokens, self.vocab_size).float(), state)
        return self.head(self.dropout(x)), state


def bare_step(config: Any, train: TrainConfig, batches: LaneBatches) -> Step:
    """Returns the step of a bare loop."""
    model, settings = BareModel(config).train(), train.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    state: Any = None

    def take(step: int) -> None:
        nonlocal state
        tokens = torch.from_numpy(batches.read(batches.sequence_indices(step)))
        logits, state = model(tokens[:, :-1], state)
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

    return take


def engine_step(config: Any, train: TrainConfig, batches: LaneBatches, micro_batch: int) -> Step:
    """Returns the engine's step."""
    model = build_empty(config, CPU)
    initialise(model, config, seed=0)
    objective = NextToken(batches, 0, "")
    stepper = Stepper(
        model,
        as_composite(train.optimizer.build(list(model.named_parameters()))),
        objective.batches(Runtime(CPU, micro_batch, Precision("fp32", CPU))),
        loss=objective.loss,
        rules=GradientRules(train.clip.build(), train.nonfinite.build()),
        precision=Precision("fp32", CPU),
        carry=model.initial_carry(batches.global_batch),
    )
    return lambda step: stepper.take(step, 1.0)


def measure(steps: dict[str, Step], count: int) -> dict[str, list[tuple[float, float]]]:
    """Takes the steps in turn; returns wall-clock and CPU seconds of each, without the warm-up."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(WARM_UP_STEPS + count):
        for name, take in steps.items():
            began = time.perf_counter(), time.process_time()
            take(number)
            seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {name: found[WARM_UP_STEPS:] for name, found in seconds.items()}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=LAYERS, default="lstm")
    parser.add_argument("--preset", default="char-rnn")
    parser.add_argument("--hidden-dim", type=int)
    parser.add_argument("--lanes", type=int, default=50)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--vocabulary", type=int, default=88)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    model = {"kind": options.kind, "preset": options.preset, "vocab_size": options.vocabulary}
    wider = {"hidden_dim": options.hidden_dim} if options.hidden_dim else {}
    config: Any = parse_model({**model, **wider, "dropout": options.dropout})
    train = TrainConfig.model_validate({"clip": {"kind": "norm", "max_norm": 5.0}})
    split = cast(TokenSplit, RandomTokens(options.vocabulary))
    batches = LaneBatches(split, config.context_length, options.lanes)
    default = min(options.lanes, default_micro_batch(CPU, config.context_length))
    seconds = measure(
        {
            "bare loop": bare_step(config, train, batches),
            "engine, whole batch": engine_step(config, train, batches, options.lanes),
            f"engine, micro-batches of {default}": engine_step(config, train, batches, default),
        },
        options.steps,
    )
    print(f"{config.kind}, {config.num_layers} x {config.hidden_dim}, {options.lanes} lanes x {config.context_length}")
    print(f"{'step':<28} {'wall ms':>9} {'ratio':>7} {'CPU ms':>9} {'ratio':>7}")
    rows, bare = [], seconds["bare loop"]
    for name, found in seconds.items():
        medians = [1e3 * statistics.median(column) for column in zip(*found, strict=True)]
        pairs = list(zip(found, bare, strict=True))
        ratios = [statistics.median(a[clock] / b[clock] for a, b in pairs) for clock in (0, 1)]
        print(f"{name:<28} {medians[0]:>9.1f} {ratios[0]:>7.3f} {medians[1]:>9.1f} {ratios[1]:>7.3f}")
        rows.append({"step": name, "wall_ms": medians[0], "wall_ratio": ratios[0]})
        rows[-1] |= {"cpu_ms": medians[1], "cpu_ratio": ratios[1]}
    if options.out:
        result = {**find_hardware("cpu").to_dict(), **vars(options), "model": config.model_dump(), "rows": rows}
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
