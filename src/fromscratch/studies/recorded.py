"""``definition.json``: what a study is, beside its runs, so that they can be judged without the study file.

It is written when runs are trained. It also holds what a viewer cannot compute from runs alone: the spread that the
study borrows from earlier ones, and what a run of each arm takes on the machine that trains.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fromscratch.config.loading import differences, read_toml
from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object, to_strict_json, write_atomically
from fromscratch.runs.records import to_count, to_float
from fromscratch.studies.definition import CONTROL, Arm, Study, StudyConfig
from fromscratch.studies.forecasts import Forecast, PastCosts, Total
from fromscratch.studies.jobs import StudyFolder
from fromscratch.studies.measures import Measure
from fromscratch.studies.noise import Spread

DEFINITION = "definition.json"
FORMAT_VERSION = 1
RUN_NAME = re.compile(r"(?P<arm>.+)-seed-(?P<seed>\d{1,18})")


@dataclass(frozen=True)
class RecordedStudy:
    """A study as its folder describes it."""

    folder: StudyFolder
    costs: PastCosts
    borrowed: Spread | None
    is_assumed: bool = False
    """Whether the folder has no definition: arms are those of its runs, the design is the default one."""


def record_definition(folder: StudyFolder, untrained: Mapping[str, Forecast], borrowed: Spread | None) -> None:
    """Writes the definition of a study into the folder of its runs."""
    study = folder.study
    values = {
        "format_version": FORMAT_VERSION,
        "study": study.name,
        "config": study.config.model_dump(mode="json"),
        "is_tuned": study.tune is not None,
        "measure": asdict(study.measure),
        "arms": [asdict(arm) for arm in study.all_arms],
        "borrowed": None if borrowed is None else asdict(borrowed),
        "one_run": {name: asdict(forecast) for name, forecast in untrained.items()},
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.path / DEFINITION, to_strict_json(values, indent=1))


def is_study(path: Path) -> bool:
    """Whether a folder holds the runs of a study: a definition, or runs of a baseline and of another arm."""
    return (path / DEFINITION).is_file() or len(_arms_of_runs(path)) > 1


def open_recorded(path: Path) -> RecordedStudy:
    """Opens the folder of a study. Raises DataError if its definition is damaged, or is not one of this version."""
    if not (path / DEFINITION).is_file():
        study = _assumed(path)
        folder = StudyFolder(study, path.parent)
        return RecordedStudy(folder, PastCosts(folder, _unknown(study)), None, is_assumed=True)
    values = read_json_object(path / DEFINITION)
    try:
        if values["format_version"] != FORMAT_VERSION:
            raise DataError(f"{path / DEFINITION}: is of format {values['format_version']!r}, not {FORMAT_VERSION}")
        arms = tuple(_arm(one) for one in values["arms"])
        config = StudyConfig.model_validate(values["config"])
        tune = path / "tune.toml" if values["is_tuned"] else None  # only whether there is one matters here
        baseline, measure = path / f"{arms[0].name}.toml", Measure(**values["measure"])
        study = Study(path.name, None, baseline, config, arms[0], arms[1:], tune, measure)
        borrowed = Spread(**values["borrowed"]) if values["borrowed"] else None
        untrained = {**_unknown(study), **{name: _forecast(one) for name, one in values["one_run"].items()}}
    except (KeyError, TypeError, AttributeError, IndexError, ValidationError, UsageError) as error:
        problem = f"malformed ({type(error).__name__}); 'fromscratch study run' writes it anew"
        raise DataError(f"{path / DEFINITION}: {problem}") from None
    if arms[0].name != CONTROL or len(arms) < 2:
        raise DataError(f"{path / DEFINITION}: malformed, it has no {CONTROL} and another arm")
    folder = StudyFolder(study, path.parent)
    return RecordedStudy(folder, PastCosts(folder, untrained), borrowed)


def _arm(values: Mapping[str, Any]) -> Arm:
    texts = {name: tuple(map(str, values[name])) for name in ("overrides", "members", "changes")}
    seeds = tuple(seed for seed in values["seeds"] if to_count(seed) is not None)
    return Arm(name=_plain(values["name"]), seeds=seeds, note=str(values["note"]), **texts)


def _plain(name: Any) -> str:
    """Checks that an arm's name stays in the folder as a part of a run's name. Raises TypeError."""
    if not isinstance(name, str) or not name or "/" in name or "\0" in name:
        raise TypeError("name of an arm")
    return name


def _forecast(values: Mapping[str, Any]) -> Forecast:
    total = values["total"]
    one_run = Total(1, to_count(total["steps"]), to_float(total["hours"]), None)
    return Forecast(one_run, to_float(values["flops"]), str(values["basis"]))


def _unknown(study: Study) -> dict[str, Forecast]:
    return {arm.name: Forecast(Total(1, None, None, None), None, "unknown") for arm in study.all_arms}


def _arms_of_runs(path: Path) -> dict[str, list[int]]:
    """Seeds by arm, as the names of runs tell; empty if there is no baseline."""
    found: dict[str, list[int]] = {}
    for config in sorted(path.glob("*-seed-*/run.toml")):
        if match := RUN_NAME.fullmatch(config.parent.name):
            found.setdefault(match["arm"], []).append(int(match["seed"]))
    if CONTROL not in found:
        return {}
    return {CONTROL: sorted(found.pop(CONTROL)), **{name: sorted(seeds) for name, seeds in sorted(found.items())}}


def _assumed(path: Path) -> Study:
    """The study that an earlier version trained, without a definition. Raises DataError."""
    seeds = _arms_of_runs(path)
    if len(seeds) < 2:
        raise DataError(f"{path}: holds no study, which has runs of a {CONTROL} and of another arm")
    plain = {name: _config_without_seed(path / f"{name}-seed-{own[0]}" / "run.toml") for name, own in seeds.items()}
    changes = {name: tuple(differences(plain[CONTROL], values)) for name, values in plain.items()}
    config = StudyConfig(baseline=CONTROL, interventions={name: {} for name in seeds if name != CONTROL})
    arms = [Arm(name, (), tuple(own), changes=changes[name]) for name, own in seeds.items()]
    return Study(path.name, None, path / CONTROL, config, arms[0], tuple(arms[1:]))


def _config_without_seed(path: Path) -> dict[str, Any]:
    try:
        values = read_toml(path)
    except UsageError:
        return {}
    if isinstance(train := values.get("train"), dict):
        train.pop("seed", None)
    return values
