"""Every part of the package that the goldens import, beside the command line.

Where such a part gets another name or another place, only this file changes; what it returns stays.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.data.store import open_store
from fromscratch.formats.weights import model_tensors
from fromscratch.machine.precision import Precision
from fromscratch.models.factory import build_empty, initialise
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.plan import plan_run
from fromscratch.training.objective import Runtime


@dataclass(frozen=True)
class GlobalBatch:
    """What one training step receives, its micro-batches joined."""

    inputs: list[list[int]]
    targets: list[list[int]]
    sequence_keys: list[int]


def initial_weights(model: dict[str, Any], *, seed: int) -> dict[str, Tensor]:
    """The parameters with which a run begins, by name; a tied matrix once."""
    config = GPTConfig.model_validate(model)
    built = build_empty(config, "cpu")
    initialise(built, config, seed=seed)
    return model_tensors(built)


def losses_and_gradients(
    model: dict[str, Any], weights: dict[str, Tensor], inputs: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses [B, T] of one batch, and the gradients of their mean by parameter, for the given weights."""
    built = build_empty(GPTConfig.model_validate(model), "cpu")
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(weights[name])
    losses: Tensor = built.losses(inputs, targets)
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in built.named_parameters() if p.grad is not None}


def global_batches(run_file: Path, count: int, *, micro_batch: int) -> list[GlobalBatch]:
    """The first global batches of a run, as its training steps receive them."""
    plan = plan_run(run_file)
    cpu = torch.device("cpu")
    batches = plan.objective.batches(Runtime(cpu, micro_batch, Precision("fp32", cpu)))
    found = []
    for step in range(count):
        pieces = list(batches.micro_batches(step))
        found.append(
            GlobalBatch(
                [row for piece in pieces for row in piece.inputs.tolist()],
                [row for piece in pieces for row in piece.targets.tolist()],
                [key for piece in pieces for key in piece.sequence_keys],
            )
        )
    return found


def resolve_run(run_file: Path, overrides: list[str], folder: Path) -> tuple[dict[str, Any], str]:
    """The identity of a run, and the ``run.toml`` that its directory gets; writes it into a folder."""
    plan = plan_run(run_file, overrides)
    run = RunDirectory(folder)
    run.create()
    run.write_config(plan.config.to_plain())
    return plan.identity, run.config.read_text("utf-8")


def store_ids(store: Path, split: str) -> list[int]:
    """Every token id of a split."""
    opened = open_store(store).split(split)
    return [int(token) for token in opened.read(0, opened.tokens)]
