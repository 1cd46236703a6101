"""The registry of noise: the spread between seeds that past studies measured, by setting.

A setting is the baseline without its seed: model, data, and everything about training. It is kept in the user's data
folder. A study lends to others and borrows from others, never from itself.
"""

import fcntl
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fromscratch.config.loading import load_run_config
from fromscratch.files import data_home, read_json_object, to_strict_json, write_atomically
from fromscratch.runs.records import to_float
from fromscratch.studies.definition import Study
from fromscratch.studies.noise import Spread, pool

FILE = "noise.json"


def registry_path() -> Path:
    """The file of the registry."""
    return data_home() / FILE


def setting_of(study: Study) -> str:
    """Identifies the setting of a study: a hash of the baseline's config without its seed."""
    plain = load_run_config(study.baseline).to_plain()
    plain["train"].pop("seed", None)
    return hashlib.sha256(to_strict_json(plain).encode()).hexdigest()[:16]


def borrowed_spread(study: Study) -> Spread | None:
    """Pools what other studies of the same setting measured; None where there are none."""
    entries = _read().get(setting_of(study), {})
    others = [_spread(entry) for name, entry in entries.items() if name != study.name]
    return pool(spread for spread in others if spread is not None and not spread.paired)


def lend(study: Study, spread: Spread | None) -> None:
    """Records the study's own spread for others; replaces what it recorded before."""
    if spread is None:
        return
    path = registry_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{FILE}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        registry = _read()
        today = datetime.now(UTC).date().isoformat()
        entry = {"variance": spread.variance, "df": spread.df, "paired": spread.paired, "measured": today}
        registry.setdefault(setting_of(study), {})[study.name] = entry
        write_atomically(path, to_strict_json(registry, indent=1))


def _read() -> dict[str, Any]:
    return read_json_object(registry_path()) if registry_path().is_file() else {}


def _spread(entry: Any) -> Spread | None:
    variance, df = (to_float(entry.get(key)) if isinstance(entry, dict) else None for key in ("variance", "df"))
    if variance is None or df is None or variance <= 0 or df <= 0:
        return None
    return Spread(variance, df, bool(entry.get("paired")))
