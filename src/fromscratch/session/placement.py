"""Where a run runs: the choices of the machine, which are recorded and cannot change the result."""

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch

from fromscratch.files import read_json_object
from fromscratch.machine.acceleration import Acceleration, choose_acceleration
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.planning.bench import Workload
from fromscratch.planning.remembered_fits import remembered_micro_batch
from fromscratch.processes.world import started_local_rank, started_local_world_size, started_world_size
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.plan import PlannedRun
from fromscratch.training.batches import choose_micro_batch

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
        largest_share = math.ceil(global_batch / self.world_size)
        return math.ceil(largest_share / self.micro_batch)


def place_run(
    plan: PlannedRun, run: RunDirectory, machine: MachineOptions, *, world_size: int | None = None, fresh: bool = False
) -> Placement:
    """Finds the device and the micro-batch; writes nothing.

    Args:
        world_size: processes that will be started here to train together; None asks torchrun's environment.
        fresh: whether the run begins anew, so that what an older one chose does not count.

    Raises:
        UsageError: the devices are not there, or the micro-batch does not divide the global batch.
    """
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
        micro_batch = min(found or micro_batch, math.ceil(plan.config.train.global_batch / world_size))
    threads = Threads(recorded.get("threads") if hardware.device.type == "cpu" else None)
    return Placement(hardware, micro_batch, world_size, acceleration, is_guess, why_not, threads)


def _recorded_choices(run: RunDirectory, hardware: Hardware, world_size: int) -> dict[str, Any]:
    """The choices of an earlier session on the same machine: a resume makes the same ones."""
    if not run.machine.is_file():
        return {}
    facts = read_json_object(run.machine)
    here = {"device_name": hardware.name, "device": hardware.device.type, "world_size": world_size}
    return facts if here.items() <= facts.items() else {}
