"""Speeds that ``fromscratch bench`` has measured, in the user's data folder, for ``fromscratch plan``."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import data_home, read_json_object, to_strict_json, write_atomically
from fromscratch.machine.hardware import Hardware, is_model
from fromscratch.planning.bench import ENGINE, Row, Workload
from fromscratch.planning.machines import Machine

MEMORY_TOLERANCE = 0.2  # between the memory in a price list and what torch reports


@dataclass(frozen=True)
class Speed:
    """The highest speed of one device that was measured for a workload."""

    device_name: str
    device_type: str
    memory_bytes: int | None
    tokens_per_second: float
    micro_batch: int
    compile: bool
    measured_on: str
    """Date, ISO 8601."""

    def is_of(self, machine: Machine) -> bool:
        """Whether the device is one of the machine's: by name, and by memory where both are known."""
        named = self.device_type if machine.device == self.device_type == "cpu" else self.device_name
        if machine.memory_gb is not None and self.memory_bytes is not None:
            stated = machine.memory_gb * 1e9
            if abs(self.memory_bytes - stated) > MEMORY_TOLERANCE * stated:
                return False
        return is_model(machine.device, named)


def speeds_file() -> Path:
    """Returns the path of the measured speeds."""
    return data_home() / "speeds.json"


def measured_speeds(workload: Workload) -> list[Speed]:
    """Returns the speeds measured for a workload, one per kind of device; skips entries that cannot be read."""
    found = []
    for entry in _read().get(_workload_key(workload), {}).values():
        try:
            found.append(Speed(**entry))
        except TypeError:
            continue
    return found


def record_speed(workload: Workload, hardware: Hardware, rows: list[Row], *, date: str) -> None:
    """Keeps the fastest row of each precision, in place of an earlier measurement of the same device.

    Raises OSError if the folder is not writable.
    """
    known = _read()
    for precision in dict.fromkeys(row.precision for row in rows):
        measured = [r for r in rows if r.precision == precision and r.recipe == ENGINE and r.tokens_per_second]
        best = max(measured, key=lambda row: row.tokens_per_second or 0.0, default=None)
        if best is None:
            continue
        speed = Speed(
            device_name=hardware.name,
            device_type=hardware.device.type,
            memory_bytes=hardware.memory_bytes,
            tokens_per_second=best.tokens_per_second or 0.0,
            micro_batch=best.micro_batch,
            compile=best.compile,
            measured_on=date,
        )
        train = workload.train.model_copy(update={"precision": precision})
        key = _workload_key(replace(workload, train=train))
        known.setdefault(key, {})[f"{hardware.name}, {hardware.memory_bytes}"] = asdict(speed)
    path = speeds_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_strict_json(known, indent=1))


def _read() -> dict[str, Any]:
    """Returns all entries. Treats a missing or damaged file as empty, because ``bench`` can measure again."""
    try:
        return {key: value for key, value in read_json_object(speeds_file()).items() if isinstance(value, dict)}
    except DataError:
        return {}


def _workload_key(workload: Workload) -> str:
    """Hashes what determines the speed, apart from the machine."""
    return hashlib.sha256(json.dumps(workload.key(), sort_keys=True).encode()).hexdigest()[:32]
