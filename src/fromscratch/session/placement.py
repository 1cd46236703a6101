"""Where a run runs: the choices of the machine, which are recorded and cannot change the result."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fromscratch.errors import FromScratchError, UsageError
from fromscratch.files import read_json_object
from fromscratch.machine.acceleration import Acceleration, choose_acceleration
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.machine.memory import default_micro_batch
from fromscratch.planning.bench import Workload
from fromscratch.planning.remembered_fits import find_and_remember, remembered_micro_batch
from fromscratch.processes.world import (
    max_local_shard,
    started_local_rank,
    started_local_world_size,
    started_world_size,
)
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.plan import PlannedRun

MIN_FLOPS_FOR_A_SEARCH = 1e17  # about five minutes of a fast GPU; a search takes a few
THREADS_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class MachineOptions:
    """What a user may say about the machine; none of it can change the result."""

    device: str | None = None
    """``cuda``, ``cuda:N``, ``mps`` or ``cpu``; None finds the fastest."""
    micro_batch: int | None = None
    """Sequences per forward pass; None finds one."""
    compile: bool | None = None
    """Whether ``torch.compile`` is used; None is where it pays."""
    activation_checkpointing: bool = False
    """Whether backward computes activations again instead of keeping them."""


@dataclass(frozen=True)
class Threads:
    """How many threads of a CPU share one matrix product: another number adds in another order."""

    before: int | None
    """As many as an earlier session on this machine had; None where there was none, or it had a GPU."""

    @property
    def can_be_restored(self) -> bool:
        """Whether this session can have as many, and its user has not asked for another number."""
        is_asked = any(os.environ.get(name) for name in THREADS_VARIABLES)
        return self.before is not None and not is_asked and self.before <= (os.cpu_count() or 1)

    def restore(self) -> None:
        """Sets this process's number to the earlier one, where that can be."""
        if self.can_be_restored and self.before is not None and self.before != torch.get_num_threads():
            torch.set_num_threads(self.before)

    @property
    def notice(self) -> str:
        """What a resume should be told; nothing where its number is what it would be anyway."""
        now = torch.get_num_threads()
        if self.before in (None, now):
            return ""
        if self.can_be_restored:
            return (
                f"this run goes on with the {self.before} threads that it had, bit for bit; OMP_NUM_THREADS={now} "
                f"takes the {now} of this machine, and the result then agrees to rounding"
            )
        return (
            f"this run had {self.before} threads and goes on with {now}: its result will agree with one that never "
            f"stopped to rounding, not to the bit (OMP_NUM_THREADS={self.before} would make it)"
        )


@dataclass(frozen=True)
class Placement:
    """The machine's choices for one run: recorded, and unable to change its result."""

    hardware: Hardware
    micro_batch: int
    """Most sequences in one forward pass."""
    world_size: int = 1
    acceleration: Acceleration = field(default_factory=Acceleration)
    is_guess: bool = False
    """Whether the micro-batch is merely a safe one, because nobody has looked for the fastest on this machine."""
    why_not_compiled: str = ""
    """Where compiling would be usual and is impossible: what is missing."""
    threads: Threads = field(default_factory=lambda: Threads(None))
    """Of a CPU, as in the session before."""

    def num_micro_batches(self, global_batch: int) -> int:
        """Forward passes per step in the process that has most of them."""
        return -(-max_local_shard(global_batch, self.world_size) // self.micro_batch)


def place_run(
    plan: PlannedRun,
    run: RunDirectory,
    machine: MachineOptions,
    *,
    world_size: int | None = None,
    fresh: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Placement:
    """Finds the device and the micro-batch. Where a search for the fastest one is worth its time, it searches.

    Args:
        world_size: processes that will be started here to train together; None reads torchrun's environment.
        fresh: whether the run begins anew, so that the choices of an older one do not count.
        tell: receives the progress of a search; None never searches.

    Raises:
        UsageError: the devices are not there, or the micro-batch does not divide the global batch.
    """
    placement = _place(plan, run, machine, world_size=world_size, fresh=fresh)
    if tell is not None and _is_worth_a_search(plan, placement):
        _search(plan, placement, tell)
        placement = _place(plan, run, machine, world_size=world_size, fresh=fresh)
    return placement


def _place(
    plan: PlannedRun, run: RunDirectory, machine: MachineOptions, *, world_size: int | None, fresh: bool
) -> Placement:
    processes_here = world_size or started_local_world_size()
    world_size = world_size or started_world_size()
    hardware = find_hardware(machine.device, local_rank=started_local_rank(), processes_here=processes_here)
    micro_batch = choose_micro_batch(
        machine.micro_batch,
        global_batch=plan.config.train.global_batch,
        context_length=plan.config.model.context_length,
        device=hardware.device,
        world_size=world_size,
    )
    recorded = {} if fresh else _recorded_choices(run, hardware, world_size)
    acceleration, why_not = choose_acceleration(
        hardware.device,
        precision=plan.config.train.precision,
        compile_wanted=recorded.get("compile") if machine.compile is None else machine.compile,
        activation_checkpointing=machine.activation_checkpointing,
    )
    is_guess = False
    if machine.micro_batch is None:
        workload = Workload(plan.config.model, plan.config.train)
        found = recorded.get("micro_batch") or remembered_micro_batch(workload, hardware, acceleration)
        is_guess = not found
        micro_batch = min(found or micro_batch, max_local_shard(plan.config.train.global_batch, world_size))
    threads = Threads(recorded.get("threads") if hardware.device.type == "cpu" else None)
    return Placement(hardware, micro_batch, world_size, acceleration, is_guess, why_not, threads)


def choose_micro_batch(
    requested: int | None, *, global_batch: int, context_length: int, device: torch.device, world_size: int = 1
) -> int:
    """Sequences per micro-batch: the number asked for, or one that surely fits.

    Raises:
        UsageError: the number asked for and the number of processes do not divide the global batch, or
            there are more processes than sequences.
    """
    if world_size > global_batch:
        raise UsageError(
            f"{world_size} processes, but train.global_batch = {global_batch} sequences; use at most {global_batch}"
        )
    max_size = max_local_shard(global_batch, world_size)
    if requested is None:
        return min(max_size, default_micro_batch(device, context_length))
    valid = [n for n in range(1, max_size + 1) if global_batch % (n * world_size) == 0]
    if requested not in valid:
        processes = f" over {world_size} processes" if world_size > 1 else ""
        listed = f"valid values are {', '.join(map(str, valid))}" if valid else "leave it out to divide it unevenly"
        raise UsageError(
            f"--micro-batch {requested}: must divide train.global_batch = {global_batch}{processes}; {listed}"
        )
    return requested


def _is_worth_a_search(plan: PlannedRun, placement: Placement) -> bool:
    """Whether to search for the fastest micro-batch: on a GPU, once, for a run of more than a few minutes."""
    on_gpu = placement.hardware.device.type == "cuda"
    flops = plan.num_steps * plan.objective.tokens_per_step * plan.costs.training_flops_per_token
    return placement.is_guess and on_gpu and started_world_size() == 1 and flops > MIN_FLOPS_FOR_A_SEARCH


def _search(plan: PlannedRun, placement: Placement, tell: Callable[[str], None]) -> None:
    """Finds and remembers the fastest micro-batch. Where that fails, training begins with a safe one."""
    tell("looking for the fastest micro-batch, once per machine and model; --micro-batch N skips this")
    try:
        find_and_remember(
            Workload(plan.config.model, plan.config.train),
            placement.hardware,
            placement.acceleration,
            share=max_local_shard(plan.config.train.global_batch, placement.world_size),
            tell=lambda probe: tell(probe.describe()),
        )
    except (FromScratchError, OSError) as error:
        tell(f"not found ({error}); going on with micro-batch {placement.micro_batch}")


def _recorded_choices(run: RunDirectory, hardware: Hardware, world_size: int) -> dict[str, Any]:
    """The choices of an earlier session on the same machine: a resume makes the same ones."""
    if not run.machine.is_file():
        return {}
    facts = read_json_object(run.machine)
    here = {"device_name": hardware.name, "device": hardware.device.type, "world_size": world_size}
    return facts if here.items() <= facts.items() else {}
