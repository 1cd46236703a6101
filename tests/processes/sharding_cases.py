"""Runs whose model two processes divide among them, one after another in one start of torchrun.

Writes the findings of each process as JSON into ``rank-N.json`` beside the run file.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch

from fromscratch.planning.sharding import Sharding
from fromscratch.processes.world import World, joined_world
from tests.processes.world_cases import SICK_RANK, Case, digest

ON, OFF = Sharding.ON, Sharding.OFF
STOP = 4
OTHER_SCIENCE = {"ramp": "train.batch_ramp={start = 2, increment = 2, steps = 3}", "untied": "train.untie_head_at=5"}
"""What changes during a run, and must with several processes too."""


def interrupted(file: Path, world: World, name: str, first: Sharding, then: Sharding) -> None:
    """A run that begins in one way and continues in another."""
    Case(file, world, name, shard=first).outcome(stop_after=STOP)
    Case(file, world, name, shard=then).outcome()


def not_finite(file: Path, world: World) -> dict[str, Any]:
    """One process finds an infinity in its part of one gradient."""
    case = Case(file, world, "not-finite", shard=ON)
    stepper = case.stepper
    stepper.take(0, 1.0)
    collect = stepper.parallelism.collect_gradients

    def collect_and_spoil() -> None:
        collect()
        if world.rank == SICK_RANK:
            gradient = stepper.parameters[0].grad
            assert gradient is not None
            gradient[1] = math.inf

    before = _local_state(case)
    stepper.parallelism.collect_gradients = collect_and_spoil  # type: ignore[method-assign]
    bad = stepper.take(1, 1.0)
    after = _local_state(case)
    stepper.parallelism.collect_gradients = collect  # type: ignore[method-assign]
    good = stepper.take(2, 1.0)
    outcomes = [int(result.outcome) for result in (bad, good)]
    return {"unchanged": before == after, "moved": _local_state(case) != after, "outcomes": outcomes}


def _local_state(case: Case) -> str:
    weights = case.stepper.parameters
    return digest(
        [*weights, *(tensor for weight in weights for tensor in case.stepper.optimizer.state[weight].values())]
    )


def main(file: Path) -> None:
    """Runs every case in the world that torchrun started."""
    with joined_world(torch.device("cpu")) as world:
        case = Case(file, world, "divided", shard=ON)
        held = sum(parameter.numel() for parameter in case.stepper.parameters)
        case.outcome()
        found: dict[str, Any] = {"held": held}
        Case(file, world, "values", 'train.clip={kind = "value", max_value = 0.01}', shard=ON).outcome()
        interrupted(file, world, "divided-divided", ON, ON)
        interrupted(file, world, "divided-copies", ON, OFF)
        interrupted(file, world, "copies-divided", OFF, ON)
        Case(file, world, "divided-alone", shard=ON).outcome(stop_after=STOP)
        Case(file, world, "alone-divided", shard=ON).outcome()
        for name, override in OTHER_SCIENCE.items():
            Case(file, world, f"{name}-copies", override).outcome()
        Case(file, world, "ramp-divided", OTHER_SCIENCE["ramp"], shard=ON).outcome()
        found["not_finite"] = not_finite(file, world)
        (file.parent / f"rank-{world.rank}.json").write_text(json.dumps(found))
