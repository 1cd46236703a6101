"""What ``fromscratch fit`` found, kept per machine and model in the user's data folder."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import data_home, read_json_object, to_strict_json, write_atomically
from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.hardware import Hardware
from fromscratch.planning.bench import Workload
from fromscratch.planning.fit import Fit, Probe, find_fit, memory_budget_bytes, probe_in_a_process


def fits_file() -> Path:
    """Where answers are kept."""
    return data_home() / "fits.json"


def remembered_micro_batch(workload: Workload, hardware: Hardware, acceleration: Acceleration) -> int | None:
    """The fastest micro-batch found earlier on this machine for this model; None where nobody looked."""
    found = _read().get(_key(workload, hardware, acceleration), {})
    size = found.get("fastest") if isinstance(found, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def find_and_remember(
    workload: Workload,
    hardware: Hardware,
    acceleration: Acceleration,
    *,
    share: int,
    tell: Callable[[Probe], None],
    budget_bytes: int | None = None,
) -> Fit:
    """Looks for the largest and the fastest micro-batch, and keeps the answer.

    Args:
        share: sequences of the global batch that one process has.
        tell: told of every probe.
        budget_bytes: memory that may be used; None is most of what is free.

    Raises:
        FromScratchError: not even one sequence fits, or a probe failed.
    """
    budget_bytes = budget_bytes or memory_budget_bytes(hardware)
    probe = probe_in_a_process(workload, hardware, acceleration, budget_bytes=budget_bytes)

    def told(size: int) -> Probe:
        tell(found := probe(size))
        return found

    fit = find_fit(told, budget_bytes=budget_bytes, share=share)
    remember(fit, workload, hardware, acceleration)
    return fit


def remember(fit: Fit, workload: Workload, hardware: Hardware, acceleration: Acceleration) -> None:
    """Keeps an answer. Raises OSError where the folder cannot be written."""
    facts = {"device_name": hardware.name, "parameters": workload.parameters, **asdict(fit)}
    path = fits_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_strict_json({**_read(), _key(workload, hardware, acceleration): facts}, indent=1))


def _read() -> dict[str, Any]:
    """All answers; none where the file is missing or damaged, since they can be found again."""
    try:
        return read_json_object(fits_file())
    except DataError:
        return {}


def _key(workload: Workload, hardware: Hardware, acceleration: Acceleration) -> str:
    """Names everything that memory and speed depend on."""
    facts = hardware.facts()
    machine = {name: facts[name] for name in ("device", "device_name", "memory_bytes", "torch")}
    if hardware.device.type == "cpu":
        machine["threads"] = facts["threads"]
    model = workload.model.model_dump(mode="json", exclude={"preset", "init"})
    train = workload.train.model_dump(mode="json", include={"precision", "optimizer", "clip"})
    text = json.dumps([machine, model, train, asdict(acceleration)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
