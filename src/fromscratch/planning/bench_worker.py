"""Worker process of ``bench``: reads a request as JSON on stdin, measures it, prints the result as JSON."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fromscratch.config.model import ExplicitAttention, GPTConfig, LinearHead, ModelConfig
from fromscratch.config.run import parse_model
from fromscratch.config.train import TrainConfig
from fromscratch.data.batches import SequenceBatches
from fromscratch.data.store import TokenSplit
from fromscratch.machine.acceleration import Acceleration, accelerate
from fromscratch.machine.allocator import keep_freed_memory, use_expandable_segments
from fromscratch.machine.attention import choose_attention
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.machine.memory import default_micro_batch, is_memory_error
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.optim.composite import as_composite
from fromscratch.planning.bench import OUT_OF_MEMORY, REFERENCE, Case
from fromscratch.processes.parent import PARENT
from fromscratch.training.held_out import TokenSlice
from fromscratch.training.next_token import NextToken
from fromscratch.training.objective import Batches, MicroBatch, Objective, Runtime
from fromscratch.training.step import GradientRules, Stepper

RATE_FACTOR = 0.1
WARM_UP_STEPS = 2  # they compile, create optimiser state and grow the allocator's memory


@dataclass(frozen=True)
class RandomTokens:
    """Random token ids, to be read like a split of a store."""

    vocab_size: int
    name: str = "random"
    tokens: int = 2**50

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """``count`` ids, the same for the same ``start``."""
        return np.random.default_rng(start).integers(self.vocab_size, size=count)


@dataclass(frozen=True)
class BatchesWithoutKeys:
    """Batches whose sequences have no random seeds of their own: dropout is torch's. See ``Batches``."""

    batches: Batches

    def targets_in(self, step: int) -> int:
        return self.batches.targets_in(step)

    @property
    def micro_batch(self) -> int:
        return self.batches.micro_batch

    @property
    def max_steps(self) -> int:
        return self.batches.max_steps

    def num_micro_batches(self, step: int) -> int:
        return self.batches.num_micro_batches(step)

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        return (replace(batch, sequence_keys=(), kernel_key=None) for batch in self.batches.micro_batches(step))

    def smaller(self) -> "Batches | None":
        return None


def random_objective(model: ModelConfig, runtime: Runtime) -> NextToken:
    """Next-token prediction with one micro-batch of random tokens per step, and one batch of them held out."""
    assert model.vocab_size is not None
    split = cast(TokenSplit, RandomTokens(model.vocab_size))
    held_out = max(runtime.micro_batch, default_micro_batch(runtime.device, model.context_length))
    return NextToken(
        SequenceBatches(split, model.context_length, global_batch=runtime.micro_batch),
        seed=0,
        store_fingerprint="",
        held_out=TokenSlice(split, 0, held_out * model.context_length),
    )


def build_stepper(
    model_config: ModelConfig,
    train: TrainConfig,
    case: Case,
    objective: Objective,
    runtime: Runtime,
    *,
    document_mask: bool = False,
) -> Stepper:
    """Builds a randomly initialised model and its stepper, by the engine or the reference recipe."""
    reference = case.recipe == REFERENCE
    if reference:
        assert isinstance(model_config, GPTConfig)  # as reference_cases has checked
        model_config = model_config.model_copy(update={"attention": ExplicitAttention(), "head": LinearHead()})
    else:
        keep_freed_memory()
        use_expandable_segments(runtime.device)
    model = build_empty(model_config, runtime.device)
    model.document_end = 0 if document_mask else None
    choose_attention(model, runtime.precision, runtime.device)
    initialise(model, model_config, seed=0)
    batches = objective.batches(runtime)
    parameters, rate = list(model.named_parameters()), train.optimizer.learning_rate
    unfused = torch.optim.AdamW(model.parameters(), lr=rate) if reference else None
    stepper = Stepper(
        model,
        as_composite(unfused or train.optimizer.build(parameters)),
        BatchesWithoutKeys(batches) if reference else batches,
        loss=accelerate(model, objective.loss, Acceleration(case.compile, case.activation_checkpointing)),
        rules=GradientRules(train.clip.build(), train.nonfinite.build()),
        precision=runtime.precision,
        carry=objective.initial_carry(model, runtime.micro_batch),
    )
    stepper.keep_averages(train.average_rules())
    return stepper


def time_steps(
    stepper: Stepper, hardware: Hardware, *, steps: int, max_seconds: float, holds_gradients: bool
) -> dict[str, Any]:
    """Times the steps after the warm-up. The warm-up is shortened to one step if time runs out."""
    seconds: list[float] = []
    while len(seconds) < WARM_UP_STEPS + steps and (len(seconds) < 2 or sum(seconds) < max_seconds):
        if holds_gradients:
            stepper.hold_gradients()
        hardware.synchronize()
        begin = time.perf_counter()
        stepper.take(len(seconds), RATE_FACTOR)
        hardware.synchronize()
        seconds.append(time.perf_counter() - begin)
    warm_up = WARM_UP_STEPS if len(seconds) > WARM_UP_STEPS else 1
    return {"error": None, "step_seconds": seconds[warm_up:], "first_step_seconds": seconds[0]}


def run_request(request: dict[str, Any]) -> dict[str, Any]:
    """Runs the requested measurement. Running out of memory is a result, not an exception."""
    torch.set_num_threads(request["threads"])
    hardware = find_hardware(request["device"])
    try:
        model, case = parse_model(request["model"]), Case(**request["case"])
        runtime = Runtime(hardware.device, case.micro_batch, Precision(case.precision, hardware.device))
        objective = random_objective(model, runtime)
        train, has_mask = TrainConfig.model_validate(request["train"]), bool(request.get("document_mask"))
        stepper = build_stepper(model, train, case, objective, runtime, document_mask=has_mask)
        found = time_steps(
            stepper,
            hardware,
            steps=request["steps"],
            max_seconds=request["max_seconds"],
            holds_gradients=request["as_memory_probe"],
        )
        if request["as_memory_probe"]:
            objective.evaluate(stepper.model, runtime, lambda: False)  # type: ignore[arg-type]
        return {**found, "peak_memory_bytes": hardware.peak_memory_bytes()}
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        return {"error": OUT_OF_MEMORY, "step_seconds": [], "first_step_seconds": None, "peak_memory_bytes": 0}


def main() -> None:
    """Reads a request from stdin and prints its result. Ends where the process that measures is gone."""
    request = json.load(sys.stdin)
    PARENT.start(request["parent"])
    print(json.dumps(run_request(request)))


if __name__ == "__main__":
    main()
