"""May a run go on with another config? As it was begun, or with the changes that its user allows.

A change is *soft* where every tensor keeps its shape and its meaning; only such can be allowed. It is
put on the record with the identity that the checkpoints before it carry.
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
    """Compares a run's config with the one it was begun with; records the differences that are allowed.

    Raises:
        UsageError: a difference is not allowed, or cannot be; the message lists the keys.
    """
    begun = read_run_config(run.config)
    saved, wanted = begun.to_plain(), plan.config.to_plain()
    wanted["data"]["store"] = saved["data"]["store"]  # its path may change; checkpoints know its content
    old, new = begun.model.weight_settings(), plan.config.model.weight_settings()
    weights = [f"model.{key}" for key in {**old, **new} if old.get(key) != new.get(key)]
    for key in allowed:
        _check_soft(key, [*HARD_KEYS, *weights], saved, wanted)
    changes = differences(saved, wanted)
    refused = [change for change in changes if not any(_covers(key, change.partition(": ")[0]) for key in allowed)]
    if refused:
        listed = "\n".join(f"  - {change}" for change in refused)
        raise UsageError(
            f"run {run.path} was begun with another config:\n{listed}\n"
            "give another --name, or --fresh to start anew (the old run is set aside), or --allow-change KEY to go on "
            "with another value where no tensor's shape depends on it"
        )
    identities = [plan.identity_of(begun)]
    if any(_covers(key, STORE) for key in allowed):
        identities += _identities_of_checkpoints(plan, run)
    if any(identity not in accepted_identities(plan, run) for identity in identities):
        with run.locked():  # nothing may change under a run that is being trained
            run.log_event(Event.CONFIG_CHANGED, changes=changes or [f"{STORE}: another content"], identities=identities)
    if changes:
        with run.locked():
            run.write_config(plan.config.to_plain())


def accepted_identities(plan: PlannedRun, run: RunDirectory) -> list[dict[str, Any]]:
    """What a checkpoint may say it belongs to: the run as it is, and as it was before allowed changes."""
    changes = (record for record in read_records(run.events) if record.get("event") == Event.CONFIG_CHANGED)
    return [plan.identity, *(identity for record in changes for identity in record.get("identities") or [])]


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """``key: old -> new`` for every value that differs."""
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
            f"--allow-change {key}: cannot be allowed, the tensors of the checkpoints depend on it; "
            "begin another run, with train.start_from where the shapes allow it"
        )


def _keys_in(config: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in config.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += _keys_in(value, f"{prefix}{name}.")
    return found


def _covers(key: str, other: str) -> bool:
    """Whether a key is another one or a table that holds it."""
    return other == key or other.startswith(f"{key}.")


def _identities_of_checkpoints(plan: PlannedRun, run: RunDirectory) -> list[dict[str, Any]]:
    manifests = [p / MANIFEST for p in checkpoints_in(run.checkpoints) if (p / MANIFEST).is_file()]
    return [{key: read_json_object(path).get(key) for key in plan.identity} for path in manifests]
