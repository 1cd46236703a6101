"""What ``fromscratch fit`` found, kept per machine and model in the user's data folder."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError
from fromscratch.files import data_home, read_json_object, to_strict_json, write_atomically
from fromscratch.training.acceleration import Acceleration
from fromscratch.training.bench import Workload
from fromscratch.training.fit import Fit
from fromscratch.training.hardware import Hardware


def fits_file() -> Path:
    """Where answers are kept."""
    return data_home() / "fits.json"


def remembered_micro_batch(workload: Workload, hardware: Hardware, acceleration: Acceleration) -> int | None:
    """The fastest micro-batch found earlier on this machine for this model; None where nobody looked."""
    found = _read().get(_key(workload, hardware, acceleration), {})
    size = found.get("fastest") if isinstance(found, dict) else None
    return size if isinstance(size, int) and size > 0 else None


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
    machine = {name: facts[name] for name in ("device", "device_name", "memory_bytes", "threads", "torch")}
    model = workload.model.model_dump(mode="json", exclude={"preset", "init"})
    train = workload.train.model_dump(mode="json", include={"precision", "optimizer", "clip"})
    text = json.dumps([machine, model, train, asdict(acceleration)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
