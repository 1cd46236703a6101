"""Worker process of ``bench``: reads a request as JSON on stdin, measures it, prints the result as JSON."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fromscratch.config.model import ExplicitAttention, GPTConfig, LinearHead, ModelConfig
from fromscratch.config.run import parse_model
from fromscratch.config.train import TrainConfig
from fromscratch.errors import UsageError
from fromscratch.machine.acceleration import Acceleration, accelerate
from fromscratch.machine.allocator import keep_freed_memory
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.machine.memory import default_micro_batch, is_memory_error
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.optim.composite import as_composite
from fromscratch.planning.bench import OUT_OF_MEMORY, REFERENCE, Case
from fromscratch.training.next_token import next_token_loss
from fromscratch.training.objective import MicroBatch
from fromscratch.training.step import GradientRules, Stepper

RATE_FACTOR = 0.1
WARM_UP_STEPS = 2  # they compile, create optimiser state and grow the allocator's memory


@dataclass(frozen=True)
class RandomBatches:
    """One micro-batch of random tokens per step."""

    vocab_size: int
    context_length: int
    micro_batch: int
    device: torch.device
    max_steps: int = 2**31
    num_micro_batches: int = 1

    @property
    def targets_per_step(self) -> int:
        return self.micro_batch * self.context_length

    def smaller(self) -> None:
        """Returns None: a measurement must not change its micro-batch."""

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, self.vocab_size, (self.micro_batch, self.context_length + 1), generator=generator)
        tokens = tokens.to(self.device)
        yield MicroBatch(tokens[:, :-1], tokens[:, 1:], tuple(range(self.micro_batch)))


def build_stepper(model_config: ModelConfig, train: TrainConfig, case: Case, hardware: Hardware) -> Stepper:
    """Builds a randomly initialised model and its stepper, by the engine or the reference recipe."""
    reference = case.recipe == REFERENCE
    if reference:
        if not isinstance(model_config, GPTConfig):
            raise UsageError(f"--reference: models of kind {model_config.kind!r} have no reference recipe")
        model_config = model_config.model_copy(update={"attention": ExplicitAttention(), "head": LinearHead()})
    else:
        keep_freed_memory()
    model = build_empty(model_config, hardware.device)
    initialise(model, model_config, seed=0)
    parameters, rate = list(model.named_parameters()), train.optimizer.learning_rate
    unfused = torch.optim.AdamW(model.parameters(), lr=rate) if reference else None
    assert model_config.vocab_size is not None
    return Stepper(
        model,
        as_composite(unfused or train.optimizer.build(parameters)),
        RandomBatches(model_config.vocab_size, model_config.context_length, case.micro_batch, hardware.device),
        loss=accelerate(model, next_token_loss, Acceleration(case.compile, case.activation_checkpointing)),
        rules=GradientRules(train.clip.build(), train.nonfinite.build()),
        precision=Precision(case.precision, hardware.device),
    )


@torch.inference_mode()
def evaluate_once(stepper: Stepper, config: ModelConfig, micro_batch: int, device: torch.device) -> None:
    """Computes the losses of one batch of the size that a run's evaluation uses."""
    batch = max(micro_batch, default_micro_batch(device, config.context_length))
    tokens = torch.zeros(batch, config.context_length, dtype=torch.long, device=device)
    stepper.model.eval()
    with stepper.precision.arithmetic():
        stepper.model.losses(tokens, tokens)  # type: ignore[operator]


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
        stepper = build_stepper(model, TrainConfig.model_validate(request["train"]), case, hardware)
        found = time_steps(
            stepper,
            hardware,
            steps=request["steps"],
            max_seconds=request["max_seconds"],
            holds_gradients=request["as_memory_probe"],
        )
        if request["as_memory_probe"]:
            evaluate_once(stepper, model, case.micro_batch, hardware.device)
        return {**found, "peak_memory_bytes": hardware.peak_memory_bytes()}
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        return {"error": OUT_OF_MEMORY, "step_seconds": [], "first_step_seconds": None, "peak_memory_bytes": 0}


if __name__ == "__main__":
    print(json.dumps(run_request(json.load(sys.stdin))))
