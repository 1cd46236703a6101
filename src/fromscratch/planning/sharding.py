"""Decides whether the processes of a run divide its model among them (FSDP2) or have a copy each (DDP)."""

import logging
from enum import StrEnum
from typing import Literal

from fromscratch.config.run import RunConfig
from fromscratch.config.train import RandomStepNonfinite, TrainConfig
from fromscratch.errors import UsageError
from fromscratch.files import readable_bytes
from fromscratch.machine.hardware import Hardware
from fromscratch.planning.bench import Workload

LOG = logging.getLogger(__name__)


class Sharding(StrEnum):
    """The user's wish. It changes memory and speed, the result to rounding only."""

    AUTO = "auto"
    """Where a copy of the model does not fit into the memory of a GPU."""
    ON = "on"
    OFF = "off"


ShardChoice = Literal["auto", "on", "off"]


def as_sharding(wish: str) -> Sharding:
    """The wish as it is typed. Raises UsageError for another word."""
    if wish not in list(Sharding):
        raise UsageError(f"shard = {wish!r}: must be {', '.join(Sharding)}")
    return Sharding(wish)


def choose_sharding(
    wish: Sharding, config: RunConfig, hardware: Hardware, *, world_size: int, activation_checkpointing: bool = False
) -> bool:
    """Whether to divide the model.

    Raises:
        UsageError: the user wants it, and this run cannot.
    """
    may_divide = world_size > 1 and is_gpu(hardware) and not config.tune
    if wish == Sharding.OFF or (wish == Sharding.AUTO and not may_divide):
        return False
    problem = "fine-tuning has no divided models; use --shard off" if config.tune else ""
    problem = problem or sharding_problem(config.train, world_size)
    if wish == Sharding.ON:
        if problem:
            raise UsageError(f"--shard on: {problem}")
        return True
    from fromscratch.planning.fit import memory_budget_bytes
    from fromscratch.planning.memory_model import forecast_memory

    workload, budget = Workload(config.model, config.train), memory_budget_bytes(hardware)
    forecast = forecast_memory(workload, "cuda", activation_checkpointing=activation_checkpointing)
    needed = forecast.at(1).total
    if needed > budget and problem:
        LOG.warning(
            "notice: a process needs about %s and has %s, but the model cannot be divided: %s",
            *(readable_bytes(round(needed)), readable_bytes(budget), problem),
        )
    return needed > budget and not problem


def advice_to_divide(workload: Workload, hardware: Hardware, *, processes: int) -> str:
    """Says what each process needs where they divide the model; empty where they cannot, or there is one alone."""
    from fromscratch.planning.memory_model import forecast_memory

    if processes == 1 or sharding_problem(workload.train, processes):
        return ""
    needed = forecast_memory(workload, hardware.device.type).divided(processes).at(1).total
    return (
        f"; {processes} processes that divide the model among them need about {readable_bytes(round(needed))} each "
        f"(train --processes {processes} --shard on)"
    )


def is_gpu(hardware: Hardware) -> bool:
    """Whether each process has a memory of its own, which a model may exceed."""
    return hardware.device.type == "cuda"


def sharding_problem(train: TrainConfig, world_size: int) -> str:
    """Says what prevents a model from being divided, and what to do; empty if nothing does."""
    ramp = train.batch_ramp
    if world_size == 1:
        return "a model is divided among several processes; add --processes N, or start them with torchrun"
    if isinstance(train.nonfinite, RandomStepNonfinite):
        return 'train.nonfinite.kind = "random-step" draws whole matrices; take another, or --shard off'
    if train.untie_head_at is not None:
        return "train.untie_head_at adds a matrix part-way; remove it, or use --shard off"
    sizes = {"train.global_batch": train.global_batch}
    if ramp:
        sizes |= {"train.batch_ramp.start": ramp.start, "train.batch_ramp.increment": ramp.increment}
    uneven = [f"{key} = {size}" for key, size in sizes.items() if size % world_size]
    if uneven:
        return f"{world_size} processes do not divide {', '.join(uneven)}; take a number that does, or --shard off"
    return ""
