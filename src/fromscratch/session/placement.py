"""Chooses device, micro-batch, processes and acceleration of a run. They change its speed, not its result."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fromscratch.errors import FromScratchError, UsageError
from fromscratch.files import read_json_object
from fromscratch.machine.acceleration import Acceleration, choose_acceleration
from fromscratch.machine.determinism import make_deterministic
from fromscratch.machine.hardware import Hardware, find_hardware, processor_kind
from fromscratch.machine.memory import default_micro_batch
from fromscratch.planning.bench import Workload
from fromscratch.planning.fit_cache import cached_micro_batch, find_and_cache_fit
from fromscratch.planning.sharding import Sharding, choose_sharding
from fromscratch.processes.world import (
    World,
    max_local_shard,
    started_local_rank,
    started_local_world_size,
    started_world_size,
)
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.plan import PlannedRun

MIN_FLOPS_FOR_SEARCH = 1e17  # about five minutes on a fast GPU; a search takes a few minutes
THREADS_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class MachineOptions:
    """The user's settings of the machine. None of them changes the result."""

    device: str | None = None
    """``cuda``, ``cuda:N``, ``mps`` or ``cpu``; None selects the fastest."""
    micro_batch: int | None = None
    """Sequences per forward pass; None selects a size."""
    compile: bool | None = None
    """Whether to use ``torch.compile``; None compiles on CUDA only."""
    activation_checkpointing: bool = False
    """Whether backward recomputes activations instead of keeping them."""
    deterministic: bool | None = None
    """Whether to use deterministic kernels only; None keeps what the run used before, by default the fastest."""
    shard: Sharding = Sharding.AUTO
    """Whether the processes divide the model among them."""


@dataclass(frozen=True)
class Threads:
    """The number of CPU threads of a run. It determines the summation order in matrix products."""

    earlier: int | None
    """Threads of the run's earlier session on this machine; None if there was none, or it used a GPU."""

    @property
    def can_be_restored(self) -> bool:
        """Whether this machine has enough cores and the user has not set the number of threads."""
        is_set = any(os.environ.get(name) for name in THREADS_VARIABLES)
        return self.earlier is not None and not is_set and self.earlier <= (os.cpu_count() or 1)

    def restore(self) -> None:
        """Sets torch's number of threads to the earlier one, if possible."""
        if self.can_be_restored and self.earlier is not None and self.earlier != torch.get_num_threads():
            torch.set_num_threads(self.earlier)

    @property
    def notice(self) -> str:
        """Returns a notice for the user of a resumed run; empty if the number of threads does not change."""
        now = torch.get_num_threads()
        if self.earlier in (None, now):
            return ""
        if self.can_be_restored:
            return (
                f"this run continues with its earlier {self.earlier} threads, so that its result stays bit-identical; "
                f"OMP_NUM_THREADS={now} uses the {now} threads of this machine, and the result differs by rounding"
            )
        return (
            f"this run had {self.earlier} threads and continues with {now}: its result differs by rounding from that "
            f"of an uninterrupted run (OMP_NUM_THREADS={self.earlier} makes it bit-identical)"
        )


@dataclass(frozen=True)
class Placement:
    """The device, micro-batch, processes and acceleration of one run, as recorded in ``machine.json``."""

    hardware: Hardware
    micro_batch: int
    """Maximum number of sequences per forward pass."""
    world_size: int = 1
    acceleration: Acceleration = field(default_factory=Acceleration)
    is_default_micro_batch: bool = False
    """Whether the micro-batch is the default, because ``fit`` has not run on this machine for this model."""
    compile_problem: str = ""
    """What prevents compilation; empty if compilation is possible or not wanted."""
    threads: Threads = field(default_factory=lambda: Threads(None))
    """CPU threads of the earlier session."""
    is_sharded: bool = False
    """Whether the processes divide the model among them, instead of having a copy each."""

    def agreed(self, world: World) -> "Placement":
        """Returns the placement that all processes share: one that lacks memory for a copy decides for all."""
        return replace(self, is_sharded=True) if world.any(self.is_sharded) else self

    def num_micro_batches(self, global_batch: int) -> int:
        """Returns the number of forward passes per step in the process with the largest local batch."""
        return -(-max_local_shard(global_batch, self.world_size) // self.micro_batch)


def place_run(
    plan: PlannedRun,
    run: RunDirectory,
    machine: MachineOptions,
    *,
    world_size: int | None = None,
    fresh: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Placement:
    """Chooses device and micro-batch. Before a long run on a GPU, searches for the fastest micro-batch.

    Args:
        world_size: number of processes to start on this machine; None reads torchrun's environment.
        fresh: whether to ignore the recorded settings of an older run.
        on_progress: receives the progress of a search; None disables the search.

    Raises:
        UsageError: a device does not exist, the micro-batch does not divide the global batch, or the model cannot be
            divided as wanted.
    """
    placement = _place(plan, run, machine, world_size=world_size, fresh=fresh)
    if on_progress is not None and _should_search(plan, placement):
        _search(plan, placement, on_progress)
        placement = _place(plan, run, machine, world_size=world_size, fresh=fresh)
    return placement


def _place(
    plan: PlannedRun, run: RunDirectory, machine: MachineOptions, *, world_size: int | None, fresh: bool
) -> Placement:
    deterministic = _wants_determinism(run, machine, fresh=fresh)
    if deterministic:
        make_deterministic()
    starts_processes, processes_here = world_size is not None, world_size or started_local_world_size()
    world_size = world_size or started_world_size()
    smallest = plan.config.train.batch_sizes.at(0)
    if plan.config.train.batch_ramp and world_size > smallest:
        raise UsageError(
            f"{world_size} processes, but train.batch_ramp.start = {smallest} sequences; use at most {smallest}"
        )
    hardware = find_hardware(machine.device, local_rank=started_local_rank(), processes_here=processes_here)
    micro_batch = choose_micro_batch(
        machine.micro_batch,
        global_batch=plan.config.train.global_batch,
        context_length=plan.longest_sequence or plan.config.model.context_length,
        device=hardware.device,
        world_size=world_size,
    )
    recorded = {} if fresh else _recorded_settings(run, hardware, world_size)
    acceleration, compile_problem = choose_acceleration(
        hardware.device,
        precision=plan.config.train.precision,
        compile_wanted=recorded.get("compile") if machine.compile is None else machine.compile,
        activation_checkpointing=machine.activation_checkpointing,
        deterministic=deterministic,
    )
    is_default = False
    if machine.micro_batch is None:
        workload = Workload.of(plan.config)
        known = recorded.get("micro_batch") or cached_micro_batch(workload, hardware, acceleration)
        is_default = not known
        micro_batch = min(known or micro_batch, max_local_shard(plan.config.train.global_batch, world_size))
    threads = Threads(recorded.get("threads") if hardware.device.type == "cpu" else None)
    placement = Placement(hardware, micro_batch, world_size, acceleration, is_default, compile_problem, threads)
    wish = Sharding.ON if machine.shard == Sharding.AUTO and recorded.get("sharded") else machine.shard
    if starts_processes and wish == Sharding.AUTO:
        return placement  # each process decides by the memory of its own device
    is_sharded = choose_sharding(
        wish,
        plan.config,
        hardware,
        world_size=world_size,
        activation_checkpointing=machine.activation_checkpointing,
    )
    return replace(placement, is_sharded=is_sharded)


def _wants_determinism(run: RunDirectory, machine: MachineOptions, *, fresh: bool) -> bool:
    """Whether the run shall be deterministic; read before the device is known, because CUDA must not start before."""
    if machine.deterministic is not None or fresh or not run.machine.is_file():
        return bool(machine.deterministic)
    return bool(read_json_object(run.machine).get("deterministic"))


def choose_micro_batch(
    requested: int | None, *, global_batch: int, context_length: int, device: torch.device, world_size: int = 1
) -> int:
    """Returns the requested sequences per micro-batch, or the device's default.

    Raises:
        UsageError: the requested number times the number of processes does not divide the global batch,
            or there are more processes than sequences.
    """
    max_size = local_batch_of(global_batch, world_size)
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


def local_batch_of(global_batch: int, world_size: int) -> int:
    """Returns the sequences of a global batch in the process with the most.

    Raises:
        UsageError: there are more processes than sequences.
    """
    if world_size > global_batch:
        raise UsageError(
            f"{world_size} processes, but train.global_batch = {global_batch} sequences; use at most {global_batch}"
        )
    return max_local_shard(global_batch, world_size)


def _should_search(plan: PlannedRun, placement: Placement) -> bool:
    """Whether to search for the fastest micro-batch: on a GPU, once, before a run of more than a few minutes."""
    is_gpu = placement.hardware.device.type == "cuda" and plan.config.tune is None
    flops = plan.tokens_before(plan.num_steps) * plan.costs.training_flops_per_token
    return placement.is_default_micro_batch and is_gpu and started_world_size() == 1 and flops > MIN_FLOPS_FOR_SEARCH


def _search(plan: PlannedRun, placement: Placement, on_progress: Callable[[str], None]) -> None:
    """Finds and caches the fastest micro-batch. If the search fails, training uses the default."""
    on_progress("searching for the fastest micro-batch, once per machine and model; --micro-batch N skips this")
    try:
        find_and_cache_fit(
            Workload.of(plan.config),
            placement.hardware,
            placement.acceleration,
            local_batch=max_local_shard(plan.config.train.global_batch, placement.world_size),
            on_probe=lambda probe: on_progress(probe.describe()),
        )
    except (FromScratchError, OSError) as error:
        on_progress(f"the search failed ({error}); continuing with micro-batch {placement.micro_batch}")


def _recorded_settings(run: RunDirectory, hardware: Hardware, world_size: int) -> dict[str, Any]:
    """Reads the settings of an earlier session on the same device; empty if there are none."""
    if not run.machine.is_file():
        return {}
    recorded = read_json_object(run.machine)
    current = {"device": hardware.device.type, "world_size": world_size}
    names = [hardware.name] if hardware.device.type == "cuda" else [hardware.name, processor_kind()]
    is_same = recorded.get("device_name") in names and current.items() <= recorded.items()
    return recorded if is_same else {}
