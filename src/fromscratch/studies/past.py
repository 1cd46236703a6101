"""What earlier studies found: kept in ``report.json`` of each study and in the user's data folder."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fromscratch.config.loading import load_run_config, read_toml
from fromscratch.config.problems import COMMON_NAMES, known_keys, suggestion
from fromscratch.config.run import RunConfig
from fromscratch.errors import DataError, UsageError
from fromscratch.files import data_home, read_json_object, to_strict_json, write_atomically
from fromscratch.runs.records import to_float
from fromscratch.studies.definition import Study, load_study
from fromscratch.studies.forecasts import Forecast
from fromscratch.studies.jobs import StudyFolder
from fromscratch.studies.results import Judgement
from fromscratch.studies.worth import to_dict

FOLDER = "findings"
FORMAT = "fromscratch study"
NO_CHANGE = "nothing"


def finding_of(
    folder: StudyFolder, judgement: Judgement, forecasts: Mapping[str, Forecast], *, measured_on: str
) -> dict[str, Any]:
    """What a study found, as ``report.json`` has it."""
    study = folder.study
    return {
        "kind": FORMAT,
        "study": study.name,
        "identity": identity_of(study),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured_on": f"{study.measure.name}, {measured_on}" if study.measure.is_tuned else measured_on,
        "margin": judgement.margin,
        "baseline": load_run_config(study.baseline).to_plain() | study.tuning(),
        "changes": {arm.name: arm.changes for arm in study.arms},
        "result": to_dict(judgement, forecasts),
    }


def identity_of(study: Study) -> str:
    """Identifies a study by its content: the baseline's config and what its arms change; seeds may be added."""
    baseline = load_run_config(study.baseline).to_plain() | study.tuning()
    content = [baseline, {arm.name: arm.overrides for arm in study.arms}]
    return hashlib.sha256(to_strict_json(content).encode()).hexdigest()[:16]


def keep_finding(study: Study, text: str) -> None:
    """Keeps a finding in the data folder; replaces an earlier one of the same study."""
    path = data_home() / FOLDER / f"{identity_of(study)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


@dataclass(frozen=True)
class Found:
    """What one study found about one arm; None means unknown."""

    study: str
    at: str
    measured_on: str
    arm: str
    change: str
    effect: float | None
    low: float | None
    high: float | None
    """Ends of the interval; None where the runs are too few for one."""
    verdict: str
    lost_runs: int
    """Runs that diverged or were stopped."""

    def change_of(self, key: str) -> str:
        """What the arm changes about a key, and how much else."""
        changes = self.change.split("; ")
        about = [change for change in changes if changes_key(change, key)]
        others = len(changes) - len(about)
        return "; ".join(about) + (f"; and {others} more" if others and about else "")

    @property
    def interval(self) -> str:
        """The interval in words."""
        return "no interval yet" if self.low is None or self.high is None else f"{self.low:+.4f} to {self.high:+.4f}"


def arms_of(finding: Mapping[str, Any]) -> list[Found]:
    """The arms of a finding. Raises DataError if it is malformed."""
    try:
        return [
            Found(
                study=str(finding["study"]),
                at=str(finding["at"]),
                measured_on=str(finding["measured_on"]),
                arm=str(arm["arm"]),
                change="; ".join(map(str, finding["changes"][arm["arm"]])) or NO_CHANGE,
                effect=to_float(arm["effect"]),
                low=_end(arm, "low"),
                high=_end(arm, "high"),
                verdict=str(arm["verdict"]),
                lost_runs=len(arm["runs"]["diverged"]),
            )
            for arm in finding["result"]["arms"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"finding of a study: malformed, {error} is missing; write the report again") from None


def _end(arm: Mapping[str, Any], name: str) -> float | None:
    value = to_float((arm["evidence"] or {}).get(name))
    return value if value is not None and math.isfinite(value) else None


def find_studies(folder: Path) -> Iterator[dict[str, Any]]:
    """The findings below a folder and in the data folder; of one study, the newest."""
    kept = data_home() / FOLDER
    paths = [*sorted(folder.rglob("report.json")), *(sorted(kept.glob("*.json")) if kept.is_dir() else [])]
    newest: dict[str, dict[str, Any]] = {}
    for path in paths:
        if (finding := finding_in(path)) is not None:
            earlier = newest.get(str(finding["identity"]))
            if earlier is None or str(earlier.get("at")) <= str(finding.get("at")):
                newest[str(finding["identity"])] = finding
    yield from newest.values()


def finding_in(path: Path) -> dict[str, Any] | None:
    """The finding of a file; None if the file is of something else."""
    try:
        finding = read_json_object(path)
    except DataError:
        return None
    return finding if finding.get("kind") == FORMAT and "identity" in finding else None


def studies_without_report(folder: Path, key: str, known: set[str]) -> Iterator[Path]:
    """Study files below a folder that change a key and are not among the studies of ``known`` identities."""
    for path in sorted(folder.rglob("*.toml")):
        try:
            if "interventions" in read_toml(path):
                study = load_study(path)
                changes = [change for arm in study.arms for change in arm.changes]
                if identity_of(study) not in known and any(changes_key(change, key) for change in changes):
                    yield path
        except UsageError:
            continue  # a file of something else


def changes_key(change: str, key: str) -> bool:
    """Whether ``key: old -> new`` is about a key, or about one within it."""
    name = change.partition(": ")[0]
    return name == key or name.startswith(f"{key}.")


def check_key(key: str) -> str:
    """Returns the key if run files have it. Raises UsageError with a suggestion."""
    paths = {known.path for known in known_keys(RunConfig)}
    paths |= {path.rpartition(".")[0] for path in paths} - {""}
    kinds = {f"{path}.kind" for path in paths}
    if key in paths | kinds:
        return key
    name = COMMON_NAMES.get(key.rpartition(".")[2], key.rpartition(".")[2])
    same = sorted(path for path in paths if path.rpartition(".")[2] == name)
    said = f"; did you mean '{same[0]}'?" if same else suggestion(key, sorted(paths))
    raise UsageError(f"key {json.dumps(key)}: run files have no such key{said}; docs/run-file.md lists them")


@dataclass(frozen=True)
class Pair:
    """One arm that two studies have in common."""

    arm: str
    one: Found
    other: Found
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    """Whether the effects differ."""


def compare_findings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Pair]:
    """Compares the arms that two studies have in common: of the same name, else of the same change.

    The interval of the difference adds the half-widths of both intervals. That holds for any dependence between the
    studies, at the level 1 - alpha_1 - alpha_2, and is wider than needed where they are independent.

    Raises:
        UsageError: one study has measured something else than the other.
    """
    measures = [finding.get("baseline", {}).get("measure", "loss of the runs") for finding in (one, other)]
    if measures[0] != measures[1]:
        raise UsageError(f"the studies measure different things, {measures[0]} and {measures[1]}: nothing to compare")
    theirs = arms_of(other)
    by_change = {found.change: found for found in theirs if found.change != NO_CHANGE}
    by_name = {found.arm: found for found in theirs}
    pairs = [(found, by_name.get(found.arm) or by_change.get(found.change)) for found in arms_of(one)]
    return [_pair(found, match) for found, match in pairs if match is not None]


def _pair(one: Found, other: Found) -> Pair:
    name = one.arm if one.arm == other.arm else f"{one.arm} / {other.arm}"
    if one.effect is None or other.effect is None:
        return Pair(name, one, other, None, None, None, "unknown: an effect is missing")
    difference = other.effect - one.effect
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Pair(name, one, other, difference, None, None, "unknown: no interval yet")
    low, high = other.low - one.high, other.high - one.low
    lost = " (diverged or stopped runs are left out)" if one.lost_runs or other.lost_runs else ""
    verdict = "they differ" if low > 0 or high < 0 else "may be the same"
    return Pair(name, one, other, difference, low, high, verdict + lost)
