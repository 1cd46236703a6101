"""Runs side by side: key figures, and the config values that differ. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fromscratch.config.loading import read_toml, values_by_key
from fromscratch.errors import UsageError
from fromscratch.runs.comparison import ComparedRun, compare_run, labels_of
from fromscratch.runs.directory import RunDirectory


@dataclass(frozen=True)
class Comparison:
    """Two or more runs."""

    runs: list[ComparedRun]
    config: dict[str, dict[str, Any]]
    """The config keys whose values differ, each with the value of every run; None where a run has none."""


def compare_runs(runs: list[RunDirectory]) -> Comparison:
    """Compares runs.

    Raises:
        UsageError: there are fewer than two different ones, or a config cannot be read.
        DataError: the ``cost.json`` of a run is damaged.
    """
    directories = labels_of(runs)
    if len(directories) < 2:
        raise UsageError(f"compare {' '.join(str(run.path) for run in runs)}: names one run; give two or more")
    return Comparison([compare_run(label, run) for label, run in directories.items()], differing_values(directories))


def differing_values(runs: Mapping[str, RunDirectory]) -> dict[str, dict[str, Any]]:
    """Returns the config keys whose values differ, as ``Comparison.config``. Raises UsageError."""
    configs = {label: values_by_key(read_toml(run.config)) for label, run in runs.items()}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    table = {key: {label: config.get(key) for label, config in configs.items()} for key in keys}
    return {
        key: values for key, values in table.items() if any(v != next(iter(values.values())) for v in values.values())
    }
