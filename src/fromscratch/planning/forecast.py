"""Hours, dollars and micro-batch of a planned run on each of several machines."""

from collections.abc import Callable
from dataclasses import dataclass

from fromscratch.machine.hardware import peak_16bit_flops
from fromscratch.planning.bench import Workload
from fromscratch.planning.fit import FREE_MEMORY_FRACTION
from fromscratch.planning.machines import Machine
from fromscratch.planning.memory_model import MemoryForecast
from fromscratch.planning.sharding import sharding_problem
from fromscratch.planning.speeds import Speed
from fromscratch.processes.world import max_local_shard

ASSUMED_MFU = 0.4
"""Share of a GPU's peak that training reaches, where nothing is measured: PaLM (Chowdhery et al. 2022, table 3) lists
21% to 46% for large models; small ones with fused kernels reach similar shares."""


@dataclass(frozen=True)
class MachineForecast:
    """What a run takes on one machine; None means unknown."""

    name: str
    devices: int
    tokens_per_second: float | None
    basis: str
    """Whether the speed was measured or assumed."""
    is_measured: bool
    hours: float | None
    """Training alone, without evaluations and saves."""
    dollars: tuple[float, float] | None
    """Lowest and highest."""
    micro_batch: int | None
    """The largest that fits, of at most one device's share of the global batch; 0 if not even one sequence fits."""
    memory_bytes: float | None
    """Predicted peak per device at that micro-batch, or at one sequence."""
    dollars_per_hour: tuple[float, float] | None
    price_source: str
    is_divided: bool = False
    """Whether the devices divide the model among them, because a copy does not fit into one."""


def forecast_machine(
    name: str,
    machine: Machine,
    workload: Workload,
    *,
    tokens: int,
    speeds: list[Speed],
    memory: Callable[[str], MemoryForecast],
    mfu: float = ASSUMED_MFU,
    budget_bytes: float | None = None,
) -> MachineForecast:
    """Computes the forecast of one machine.

    Args:
        tokens: that the run trains on.
        speeds: measured for this workload.
        memory: returns the memory forecast of a kind of device (``cpu``, ``cuda``).
        mfu: share of the peak that is assumed where no speed is measured.
        budget_bytes: memory of one device that training may use; None takes most of the machine's.
    """
    speed, basis, is_measured = expected_speed(machine, workload, speeds, mfu)
    hours = tokens / speed / 3600 if speed else None
    price = machine.price_range
    if budget_bytes is None and machine.memory_gb is not None:
        budget_bytes = machine.memory_gb * 1e9 * FREE_MEMORY_FRACTION
    forecast = memory("cpu" if machine.device == "cpu" else "cuda")
    share = max_local_shard(workload.train.global_batch, machine.devices)
    micro_batch = None if budget_bytes is None else min(share, forecast.max_micro_batch(budget_bytes))
    is_divided = micro_batch == 0 and not sharding_problem(workload.train, machine.devices)
    if is_divided and budget_bytes is not None:
        forecast = forecast.divided(machine.devices)
        micro_batch = min(share, forecast.max_micro_batch(budget_bytes))
    return MachineForecast(
        name=name,
        devices=machine.devices,
        tokens_per_second=speed,
        basis=basis,
        is_measured=is_measured,
        hours=hours,
        dollars=None if hours is None or price is None else (hours * price[0], hours * price[1]),
        micro_batch=micro_batch,
        memory_bytes=forecast.at(max(1, micro_batch or 1)).total,
        dollars_per_hour=price,
        price_source=", ".join(filter(None, (machine.source, machine.date))),
        is_divided=is_divided,
    )


def expected_speed(
    machine: Machine, workload: Workload, speeds: list[Speed], mfu: float = ASSUMED_MFU
) -> tuple[float | None, str, bool]:
    """Returns tokens per second of the machine, where they come from, and whether they were measured."""
    measured = max((s for s in speeds if s.is_of(machine)), key=lambda s: s.tokens_per_second, default=None)
    if measured is not None:
        times = f" on one device, times {machine.devices}" if machine.devices > 1 else ""
        return machine.devices * measured.tokens_per_second, f"measured {measured.measured_on}{times}", True
    peak = peak_16bit_flops(machine.device)
    if peak is None or workload.train.precision not in ("bf16", "fp16"):
        return None, "unknown: run fromscratch bench there", False
    return machine.devices * peak * mfu / workload.flops_per_token, f"assumed, MFU {mfu:.0%}", False
