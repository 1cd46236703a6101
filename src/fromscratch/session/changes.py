"""Compares the config of a resumed run with its first one; accepts the changes that the user allows.

A change is *soft* if every tensor keeps its shape and its meaning. The user can allow only soft changes.
An event records the changes, and the identity that the earlier checkpoints carry.
"""

from collections.abc import Sequence
from typing import Any

from fromscratch.config.loading import read_run_config
from fromscratch.config.problems import suggestion
from fromscratch.errors import UsageError
from fromscratch.files import MANIFEST, read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import checkpoints_in
from fromscratch.runs.states import Event
from fromscratch.session.plan import PlannedRun

STORE = "data.store"
HARD_KEYS = ("train.optimizer.kind", "train.start_from")


def accept_changes(plan: PlannedRun, run: RunDirectory, allowed: Sequence[str]) -> None:
    """Compares a run's config with its recorded one; records the allowed differences.

    Raises:
        UsageError: a difference is not allowed or not soft; the message lists the keys.
    """
    recorded = read_run_config(run.config)
    saved, wanted = recorded.to_plain(), plan.config.to_plain()
    wanted["data"]["store"] = saved["data"]["store"]  # the path may change; the identity holds the content
    old, new = recorded.model.weight_settings(), plan.config.model.weight_settings()
    weights = [f"model.{key}" for key in {**old, **new} if old.get(key) != new.get(key)]
    for key in allowed:
        _check_soft(key, [*HARD_KEYS, *weights], saved, wanted)
    changes = differences(saved, wanted)
    refused = [change for change in changes if not any(_covers(key, change.partition(": ")[0]) for key in allowed)]
    if refused:
        listed = "\n".join(f"  - {change}" for change in refused)
        raise UsageError(
            f"run {run.path} was started with another config:\n{listed}\n"
            "give another --name, or --fresh to start again (the old run is renamed), or --allow-change KEY to "
            "continue with the new value of a key that no tensor's shape depends on"
        )
    identities = [plan.identity_of(recorded)]
    if any(_covers(key, STORE) for key in allowed):
        identities += _identities_of_checkpoints(plan, run)
    if any(identity not in accepted_identities(plan, run) for identity in identities):
        with run.locked():  # a process that trains this run holds the lock
            run.log_event(Event.CONFIG_CHANGED, changes=changes or [f"{STORE}: another content"], identities=identities)
    if changes:
        with run.locked():
            run.write_config(plan.config.to_plain())


def accepted_identities(plan: PlannedRun, run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the identities that a checkpoint may have: the current one, and those before allowed changes."""
    changes = (record for record in read_records(run.events) if record.get("event") == Event.CONFIG_CHANGED)
    return [plan.identity, *(identity for record in changes for identity in record.get("identities") or [])]


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


def _check_soft(key: str, hard_keys: Sequence[str], *configs: dict[str, Any]) -> None:
    known = {name for config in configs for name in _keys_in(config)}
    if key not in known:
        raise UsageError(f"--allow-change {key}: no such key{suggestion(key, sorted(known))}")
    if any(_covers(hard, key) or _covers(key, hard) for hard in hard_keys):
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
