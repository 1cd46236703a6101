"""Caches results of ``fromscratch fit`` in the user's data folder, per machine and model."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.hardware import Hardware
from fromscratch.planning.bench import Workload
from fromscratch.planning.cache import add_to_cache, read_cache
from fromscratch.planning.fit import Fit, Probe, find_fit, memory_budget_bytes, probe_in_process
from fromscratch.planning.peak_flops import PeakFlops

CACHE = "fits"


def cached_micro_batch(workload: Workload, hardware: Hardware, acceleration: Acceleration) -> int | None:
    """Returns the fastest micro-batch for this machine and model, or None if the cache has none."""
    cached = read_cache(CACHE).get(_key(workload, hardware, acceleration), {})
    size = cached.get("fastest") if isinstance(cached, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def find_and_cache_fit(
    workload: Workload,
    hardware: Hardware,
    acceleration: Acceleration,
    *,
    local_batch: int,
    on_probe: Callable[[Probe], None],
    budget_bytes: int | None = None,
) -> Fit:
    """Searches for the largest and the fastest micro-batch and caches the result, and the peak FLOP/s of a CPU.

    Args:
        local_batch: sequences of the global batch per process.
        on_probe: called with every probe.
        budget_bytes: memory that training may use; None means most of the free memory.

    Raises:
        DoesNotFitError: not even one sequence fits.
        FromScratchError: a probe failed.
    """
    budget_bytes = budget_bytes or memory_budget_bytes(hardware)
    run_probe = probe_in_process(workload, hardware, acceleration, budget_bytes=budget_bytes)

    def probe(size: int) -> Probe:
        on_probe(result := run_probe(size))
        return result

    fit = find_fit(
        probe, budget_bytes=budget_bytes, local_batch=local_batch, share_first=hardware.device.type == "cuda"
    )
    cache_fit(fit, workload, hardware, acceleration)
    PeakFlops(hardware).sample(workload.train.precision)
    return fit


def cache_fit(fit: Fit, workload: Workload, hardware: Hardware, acceleration: Acceleration) -> None:
    """Writes a result to the cache. Raises OSError if the folder is not writable."""
    entry = {"device_name": hardware.name, "parameters": workload.parameters, **asdict(fit)}
    add_to_cache(CACHE, _key(workload, hardware, acceleration), entry)


def _key(workload: Workload, hardware: Hardware, acceleration: Acceleration) -> str:
    """Hashes everything that determines memory and speed."""
    properties = hardware.to_dict()
    machine = {name: properties[name] for name in ("device", "device_name", "memory_bytes", "torch")}
    if hardware.device.type == "cpu":
        machine["threads"] = properties["threads"]
    text = json.dumps([machine, *workload.key(), asdict(acceleration)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
