"""The smallest study there is: one change, without a study file of the user's."""

import os
import re
from pathlib import Path
from typing import Any

import tomli_w

from fromscratch.config.loading import parse_override, read_toml
from fromscratch.errors import UsageError
from fromscratch.files import write_atomically
from fromscratch.runs.directory import check_run_name
from fromscratch.studies.definition import FIRST_SEED, make_study, parse_study

ARM = "change"


def write_study(
    baseline: Path,
    overrides: list[str],
    seeds: int,
    name: str | None,
    runs_dir: Path,
    *,
    tune: Path | None = None,
    **settings: object,
) -> Path:
    """Writes the study file into the folder of its runs; returns its path.

    Args:
        tune: run file by which the models are tuned.
        settings: further keys of the study file; None leaves one out.

    Raises:
        UsageError: another change was tried under that name, or the change is not valid.
    """
    name = check_run_name(name or _name_of(baseline, overrides))
    folder = runs_dir / name
    file = folder / f"{name}.toml"
    change: dict[str, object] = {}
    for item in overrides:
        _merge(change, parse_override(item))
    values: dict[str, Any] = {
        "baseline": _relative(baseline, folder),
        **{key: value for key, value in settings.items() if value is not None},
        **({"tune": _relative(tune, folder)} if tune else {}),
        "seeds": list(range(FIRST_SEED, FIRST_SEED + seeds)),
        "interventions": {ARM: change},
    }
    as_given = {**values, "baseline": str(baseline), **({"tune": str(tune)} if tune else {})}
    make_study(parse_study(as_given, name), Path(), name)  # a change that is not valid takes no name and no folder
    if file.is_file():
        earlier = read_toml(file)
        if any(earlier.get(key) != values.get(key) for key in {*earlier, *values} - {"seeds"}):
            raise UsageError(f"{file}: holds another change; give the study another --name")
        values["seeds"] = sorted({*earlier.get("seeds", []), *values["seeds"]})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, tomli_w.dumps(values))
    return file


def _relative(file: Path, folder: Path) -> str:
    return os.path.relpath(file.resolve(), folder.resolve())


def _name_of(baseline: Path, overrides: list[str]) -> str:
    changes = [f"{key.rpartition('.')[2]}-{value}" for key, _, value in (item.partition("=") for item in overrides)]
    text = "-".join([baseline.stem, *changes])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:100]


def _merge(into: dict[str, object], values: dict[str, object]) -> None:
    for key, value in values.items():
        below = into.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and "kind" not in value:
            _merge(below, value)
        else:
            into[key] = value
