"""Compares the config of a resumed run with its first one; accepts the changes that the user allows.

A change is *soft* if every tensor keeps its shape and its meaning. The user can allow only soft changes.
Nothing is written until a step is taken with the new config. Then an event records the changes, and the identity that
the earlier checkpoints carry; the config is kept with the step after which it applies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fromscratch.config.loading import differences, read_run_config
from fromscratch.config.problems import suggestion
from fromscratch.errors import UsageError
from fromscratch.files import MANIFEST, read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import checkpoints_in
from fromscratch.runs.states import Event
from fromscratch.session.plan import PlannedRun
from fromscratch.training.observers import SilentObserver

STORES = ("data.store", "eval.store")
HARD_KEYS = ("train.optimizer.kind", "train.start_from", "train.untie_head_at")


@dataclass(frozen=True)
class SessionConfig:
    """The config of a session, and how it differs from the run's recorded one."""

    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config to record."""
    changes: list[str] = field(default_factory=list)
    """The allowed changes: ``key: old -> new``."""
    identities: list[dict[str, Any]] = field(default_factory=list)
    """Further identities that the run's checkpoints may have."""


NO_CHANGES = SessionConfig()


class ConfigRecorder(SilentObserver):
    """Records the config of a session when the session's first step is recorded; in the main process only."""

    def __init__(self, run: RunDirectory, session: SessionConfig) -> None:
        self._run, self._session = run, session
        self._after_step: int | None = None

    def on_step(self, record: dict[str, Any]) -> None:
        after_step = record["step"] - 1
        if self._after_step is None and self._session.identities:
            self._run.log_event(
                Event.CONFIG_CHANGED, changes=self._session.changes, identities=self._session.identities
            )
        if self._after_step is None or after_step < self._after_step:  # a rollback may go behind the first step
            self._run.record_config(self._session.config, after_step=after_step)
            self._after_step = after_step


def accept_changes(plan: PlannedRun, run: RunDirectory, allowed: Sequence[str]) -> SessionConfig:
    """Compares a run's config with its recorded one. Writes nothing.

    Raises:
        UsageError: a difference is not allowed or not soft; the message lists the keys.
    """
    recorded = read_run_config(run.config)
    saved, wanted = recorded.to_plain(), plan.config.to_plain()
    wanted["data"]["store"] = saved["data"]["store"]  # the path may change; the identity holds the content
    if checkpoints_in(run.checkpoints):  # their manifests hold the identity
        _copy_paths(saved, wanted)
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
    identities = plan.identities_of(recorded)
    is_other_store = any(_covers(key, store) for key in allowed for store in STORES)
    if is_other_store:
        identities += _identities_of_checkpoints(plan, run)
    if not changes and not is_other_store:
        return SessionConfig(saved)
    if all(identity in accepted_identities(plan, run) for identity in identities):
        return SessionConfig(plan.config.to_plain())
    return SessionConfig(plan.config.to_plain(), changes or ["another content of a store"], identities)


def accepted_identities(plan: PlannedRun, run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the identities that a checkpoint may have: the current one, and those before allowed changes."""
    changes = (record for record in read_records(run.events) if record.get("event") == Event.CONFIG_CHANGED)
    return [
        *plan.identities_of(plan.config),
        *(identity for record in changes for identity in record.get("identities") or []),
    ]


def _copy_paths(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Copies the other paths that may change: the held-out store's and the parent's."""
    if "store" in saved["eval"] and "store" in wanted["eval"]:
        wanted["eval"]["store"] = saved["eval"]["store"]
    if "start_from" in saved["train"] and "start_from" in wanted["train"]:
        wanted["train"]["start_from"]["model"] = saved["train"]["start_from"]["model"]


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
