"""Runs whose model two processes divide among them, one after another in one start of torchrun.

Writes the findings of each process as JSON into ``rank-N.json`` beside the run file.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import fromscratch
from fromscratch.machine.acceleration import accelerate
from fromscratch.optim.composite import as_composite
from fromscratch.optim.parts import ParameterPart
from fromscratch.planning.sharding import Sharding
from fromscratch.processes.world import World, joined_world
from tests.processes.world_cases import SICK_RANK, Case, digest

ON, OFF = Sharding.ON, Sharding.OFF
STOP = 4
OTHER_SCIENCE = {"ramp": "train.batch_ramp={start = 2, increment = 2, steps = 3}", "untied": "train.untie_head_at=5"}
"""What changes during a run, and must with several processes too."""
MUON = "train.optimizer={kind = 'muon', cautious = true, momentum = 0.9}"
FP16 = "train.precision=fp16"
DIVIDED_SCIENCE = {
    "muon": MUON,
    "fp16": FP16,
    "values": 'train.clip={kind = "value", max_value = 0.01}',
    "auxiliary": "model.head={kind = 'chunked', z_loss = 1e-3}",
}
"""What needs more than the part of a process."""


def interrupted(file: Path, world: World, name: str, first: Sharding, then: Sharding) -> None:
    """A run that begins in one way and continues in another."""
    Case(file, world, name, shard=first).outcome(stop_after=STOP)
    Case(file, world, name, shard=then).outcome()


def not_finite(file: Path, world: World, name: str, *overrides: str) -> dict[str, Any]:
    """One process finds an infinity in its part of one gradient."""
    case = Case(file, world, name, *overrides, shard=ON)
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
    found = {"unchanged": before == after, "moved": _local_state(case) != after, "outcomes": outcomes}
    return {**found, "scaler": stepper.precision.state()}


def compiled(file: Path, world: World) -> int:
    """A whole run whose blocks are compiled, without torch's slow code generation. Returns the number of graphs."""
    with patch("fromscratch.session.setup.accelerate", partial(accelerate, backend="aot_eager")):
        Case(file, world, "compiled", shard=ON, compile=True).outcome()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def muon_steps(file: Path, world: World) -> dict[str, float]:
    """Muon over parts, given the gradients that torch's Muon gets over whole matrices: the largest differences."""
    case = Case(file, world, "muon-steps", MUON, shard=ON)
    named = case.stepper.parallelism.named_parameters(case.stepper.model)
    parts = [(name, part) for name, part in named if isinstance(part, ParameterPart)]
    wholes = [(name, nn.Parameter(part.whole_of(part.detach()))) for name, part in parts]
    alone = as_composite(case.plan.config.train.optimizer.build(wholes))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for (_, part), (_, whole) in zip(parts, wholes, strict=True):
            whole.grad = torch.randn(whole.shape, generator=generator)
            part.grad = part.rows_of(whole.grad)
        for optimizer in (case.stepper.optimizer, alone):
            optimizer.step_unless(torch.zeros(()))
    return {
        name: max(
            _difference(part.whole_of(part.detach()), whole),
            *(
                _difference(part.whole_of(state), alone.state[whole][key])
                for key, state in case.stepper.optimizer.state[part].items()
            ),
        )
        for (name, part), (_, whole) in zip(parts, wholes, strict=True)
    }


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _local_state(case: Case) -> str:
    weights = case.stepper.parameters
    return digest(
        [*weights, *(tensor for weight in weights for tensor in case.stepper.optimizer.state[weight].values())]
    )


def main(file: Path) -> None:
    """Runs every case in the world that torchrun started; the first one as a script does."""
    told: list[str] = []
    found: dict[str, Any] = {"told": told}
    settings: dict[str, Any] = {"runs_dir": file.parent / "runs", "device": "cpu", "tell": told.append}
    fromscratch.train(file.with_name("lstm.toml"), shard="on", stop_after=STOP, **settings)
    with joined_world(torch.device("cpu")) as world:
        case = Case(file, world, "divided", shard=ON)
        held = sum(parameter.numel() for parameter in case.stepper.parameters)
        case.outcome()
        found["held"] = held
        for name, override in DIVIDED_SCIENCE.items():
            Case(file, world, name, override, shard=ON).outcome()
        found["graphs"] = compiled(file, world)
        interrupted(file, world, "divided-divided", ON, ON)
        interrupted(file, world, "divided-copies", ON, OFF)
        interrupted(file, world, "copies-divided", OFF, ON)
        Case(file, world, "divided-alone", shard=ON).outcome(stop_after=STOP)
        Case(file, world, "alone-divided", shard=ON).outcome()
        for name, override in OTHER_SCIENCE.items():
            Case(file, world, f"{name}-copies", override).outcome()
        Case(file, world, "ramp-divided", OTHER_SCIENCE["ramp"], shard=ON).outcome()
        found["not_finite"] = not_finite(file, world, "not-finite")
        found["overflow"] = not_finite(file, world, "overflow", FP16)
        found["muon_steps"] = muon_steps(file, world)
        (file.parent / f"rank-{world.rank}.json").write_text(json.dumps(found))
