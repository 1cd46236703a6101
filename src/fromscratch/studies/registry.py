"""The registry of noise: the spread between seeds that past studies measured, by setting.

A setting is the baseline without its seed: model, data, and everything about training. It is kept in the user's data
folder. A study lends to others and borrows from others, never from itself: an entry is one arm, identified by its
config, and lists its seeds, so that no run counts twice, whatever studies are named.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fromscratch.config.loading import load_run_config
from fromscratch.files import data_home, locked, read_json_object, to_strict_json, write_atomically
from fromscratch.runs.records import to_count, to_float
from fromscratch.studies.definition import Arm, Study
from fromscratch.studies.noise import Losses, Spread, pool, spread_within_arms

FILE = "noise.json"
Run = tuple[str, int]
"""The identity of an arm and a seed."""


def registry_path() -> Path:
    """The file of the registry."""
    return data_home() / FILE


def setting_of(study: Study) -> str:
    """Identifies the setting of a study: a hash of the baseline's config without its seed."""
    return _identity(study, study.control)


def _identity(study: Study, arm: Arm) -> str:
    """Identifies an arm by what it trains, and by what is measured: a hash of its config without the seed."""
    plain = {**load_run_config(study.baseline, list(arm.overrides)).to_plain(), **study.tuning()}
    plain["train"].pop("seed", None)
    return hashlib.sha256(to_strict_json(plain).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Entry:
    spread: Spread
    study: str
    runs: frozenset[Run]
    """Empty in an entry of an earlier version, which was one study identified by its name."""


def borrowed_spread(study: Study) -> Spread | None:
    """Pools what other studies of the same setting measured; None where there are none.

    An entry that shares a run with this study, or with one that is already pooled, is left out.
    """
    entries = _entries(_read().get(setting_of(study), {}))
    taken = {(_identity(study, arm), seed) for arm in study.all_arms for seed in arm.seeds}
    found = []
    for entry in sorted(entries, key=lambda one: -one.spread.df):
        is_own = bool(entry.runs & taken) if entry.runs else entry.study == study.name
        if not is_own and not entry.spread.paired:
            taken |= entry.runs
            found.append(entry.spread)
    return pool(found)


def lend(study: Study, losses: Losses) -> None:
    """Records the spread of each arm for others.

    Replaces what the same arm with the same first seed recorded before, unless that had more seeds, and the entry that
    an earlier version wrote under the study's name.

    Args:
        losses: Final losses by arm and seed, finite.
    """
    today = datetime.now(UTC).date().isoformat()
    entries: dict[str, dict[str, Any]] = {}
    for arm in study.all_arms:
        spread = spread_within_arms({arm.name: losses.get(arm.name, {})})
        if spread is not None:
            identity, seeds = _identity(study, arm), sorted(losses[arm.name])
            entries[f"{identity}-{seeds[0]}"] = {
                **{"variance": spread.variance, "df": spread.df, "paired": False, "measured": today},
                **{"study": study.name, "arm": arm.name, "identity": identity, "seeds": seeds},
            }
    if not entries:
        return
    path = registry_path()
    with locked(path.with_name(f".{FILE}.lock")):
        registry = _read()
        known = registry.setdefault(setting_of(study), {})
        known.pop(study.name, None)
        for key, entry in entries.items():
            if (to_float(known.get(key, {}).get("df")) or 0.0) <= entry["df"]:
                known[key] = entry
        write_atomically(path, to_strict_json(registry, indent=1))


def _read() -> dict[str, Any]:
    return read_json_object(registry_path()) if registry_path().is_file() else {}


def _entries(values: Any) -> Iterator[_Entry]:
    """The entries of a setting that can be read."""
    for key, entry in values.items() if isinstance(values, dict) else ():
        if not isinstance(entry, dict):
            continue
        variance, df = to_float(entry.get("variance")), to_float(entry.get("df"))
        if variance is None or df is None or variance <= 0 or df <= 0:
            continue
        seeds = [seed for seed in entry.get("seeds", []) if to_count(seed) is not None]
        runs = frozenset((str(entry.get("identity")), seed) for seed in seeds)
        yield _Entry(Spread(variance, df, bool(entry.get("paired"))), str(entry.get("study", key)), runs)
