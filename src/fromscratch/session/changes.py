"""Compares the config of a resumed run with its first one; accepts the changes that the user allows.

A change is *soft* if every tensor keeps its shape and its meaning. The user can allow only soft changes.
An event records the changes, and the identity that the earlier checkpoints carry.
"""

from collections.abc import Sequence
from typing import Any

from fromscratch.config.loading import parse_run_config, read_toml
from fromscratch.config.problems import suggestion
from fromscratch.errors import UsageError
from fromscratch.files import MANIFEST, read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import checkpoints_in
from fromscratch.session.parent import FREE_KEYS
from fromscratch.session.plan import PlannedRun

EVENT = "config-changed"
STORE = "data.store"
HARD_KEYS = ("train.optimizer.kind", "train.start_from")
SOFT_MODEL_KEYS = tuple(f"model.{key}" for key in FREE_KEYS)


def accept_changes(plan: PlannedRun, run: RunDirectory, allowed: Sequence[str]) -> None:
    """Compares a run's config with its recorded one; records the allowed differences.

    Raises:
        UsageError: a difference is not allowed or not soft; the message lists the keys.
    """
    begun = parse_run_config(read_toml(run.config), where=str(run.config))
    saved, wanted = begun.to_plain(), plan.config.to_plain()
    wanted["data"]["store"] = saved["data"]["store"]  # the path may change; the checkpoints' identity holds the content
    for key in allowed:
        _check_soft(key, saved, wanted)
    changes = differences(saved, wanted)
    refused = [change for change in changes if not any(_covers(key, change.partition(": ")[0]) for key in allowed)]
    if refused:
        listed = "\n".join(f"  - {change}" for change in refused)
        raise UsageError(
            f"run {run.path} was started with another config:\n{listed}\n"
            "give another --name, or --fresh to start again (the old run is renamed), or --allow-change KEY to "
            "continue with the new value of a key that no tensor's shape depends on"
        )
    identities = [plan.identity_of(begun)]
    if any(_covers(key, STORE) for key in allowed):
        identities += _identities_of_checkpoints(plan, run)
    if any(identity not in accepted_identities(plan, run) for identity in identities):
        with run.locked():  # a process that trains this run holds the lock
            run.log_event(EVENT, changes=changes or [f"{STORE}: another content"], identities=identities)
    if changes:
        with run.locked():
            run.write_config(plan.config.to_plain())


def accepted_identities(plan: PlannedRun, run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the identities that a checkpoint may have: the current one, and those before allowed changes."""
    earlier = (record.get("identities") for record in read_records(run.events) if record.get("event") == EVENT)
    return [plan.identity, *(identity for identities in earlier for identity in identities or [])]


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Returns ``key: old -> new`` for every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line
            for name in keys
            for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def _check_soft(key: str, *configs: dict[str, Any]) -> None:
    known = {name for config in configs for name in _keys_in(config)}
    if key not in known:
        raise UsageError(f"--allow-change {key}: no such key{suggestion(key, sorted(known))}")
    is_model = _covers("model", key) and not any(_covers(soft, key) for soft in SOFT_MODEL_KEYS)
    if is_model or any(_covers(hard, key) or _covers(key, hard) for hard in HARD_KEYS):
        raise UsageError(
            f"--allow-change {key}: cannot be allowed, because the checkpoints' tensors depend on it; "
            "start another run, with train.start_from if the shapes agree"
        )


def _keys_in(config: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in config.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _keys_in(value, f"{prefix}{name}.")
    return found


def _covers(key: str, other: str) -> bool:
    """Whether a key equals another key or is a table that contains it."""
    return other == key or other.startswith(f"{key}.")


def _identities_of_checkpoints(plan: PlannedRun, run: RunDirectory) -> list[dict[str, Any]]:
    manifests = [p / MANIFEST for p in checkpoints_in(run.checkpoints) if (p / MANIFEST).is_file()]
    return [{key: read_json_object(path).get(key) for key in plan.identity} for path in manifests]
