"""A small GPT on the GPU and its training steps, for the tests of this folder."""

from typing import Any

import torch

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.machine.acceleration import Acceleration, accelerate
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.optim.composite import as_composite
from fromscratch.planning.bench_worker import random_objective
from fromscratch.training.next_token import NextToken
from fromscratch.training.objective import Runtime
from fromscratch.training.step import GradientRules, Stepper

SHAPE = {"vocab_size": 5_003, "context_length": 128, "num_layers": 2, "num_heads": 4, "embedding_dim": 256}
GLOBAL_BATCH = 8


def cuda() -> torch.device:
    """The current device, with its index."""
    return torch.device("cuda", torch.cuda.current_device())


def make_stepper(
    *,
    device: torch.device | None = None,
    micro_batch: int = GLOBAL_BATCH,
    precision: str = "bf16",
    compiled: bool = False,
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
) -> Stepper:
    """Training steps of random tokens in global batches of eight sequences, from the same first weights."""
    device = device or cuda()
    config = GPTConfig.model_validate({**SHAPE, "dropout": 0.1, **(model or {})})
    settings = TrainConfig.model_validate({"precision": precision, **(train or {})})
    whole = Runtime(device, GLOBAL_BATCH, Precision(precision, device))
    objective: NextToken = random_objective(config, whole)
    runtime = Runtime(device, micro_batch, whole.precision)
    network = build_empty(config, device)
    initialise(network, config, seed=1)
    return Stepper(
        network,
        as_composite(settings.optimizer.build(list(network.named_parameters()))),
        objective.batches(runtime),
        loss=accelerate(network, objective.loss, Acceleration(compiled)),
        rules=GradientRules(settings.clip.build(), settings.nonfinite.build()),
        precision=runtime.precision,
    )


def weights_after(stepper: Stepper, steps: int) -> torch.Tensor:
    """All weights in one vector on the host, after some steps."""
    for step in range(steps):
        stepper.take(step, 1.0)
    return torch.cat([parameter.detach().flatten() for parameter in stepper.model.parameters()]).cpu()
