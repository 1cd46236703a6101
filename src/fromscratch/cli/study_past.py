"""``fromscratch study compare`` and ``study tried``: what studies have found."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag
from fromscratch.cli.output import note, print_columns, print_json, printable
from fromscratch.cli.study_status import RunsDir
from fromscratch.errors import UsageError

if TYPE_CHECKING:
    from fromscratch.studies.past import Found, Pair

StudyOrReport = Annotated[Path, typer.Argument(help="A study file, judged on its runs now; or a report.json.")]


def compare(
    one: StudyOrReport, other: StudyOrReport, runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False
) -> None:
    """Compare two studies: the arms that they have in common, and whether their effects differ.

    Says which settings of the two baselines differ: effects at another size or length are another question.

    Example: fromscratch study compare studies/small.toml studies/large.toml
    """
    from fromscratch.config.loading import differences
    from fromscratch.studies.past import compare_findings

    first, second = _finding(one, runs_dir), _finding(other, runs_dir)
    pairs = compare_findings(first, second)
    settings = differences(first["baseline"], second["baseline"])
    if first["measured_on"] != second["measured_on"]:
        settings.append(f"measured on: {first['measured_on']} -> {second['measured_on']}")
    if as_json:
        print_json({"settings": settings, "arms": [asdict(pair) for pair in pairs]})
        return
    print("settings that differ:" if settings else "settings: the same")
    for line in settings:
        print(f"  {printable(line)}")
    if not pairs:
        note("the studies have no arm in common, by name or by what it changes")
        return
    print()
    heads = ("arm", "effect", "interval", "other effect", "other interval", "difference", "interval", "verdict")
    print_columns(heads, [_pair_cells(pair) for pair in pairs])
    for pair in pairs:
        if pair.one.change != pair.other.change:
            note(f"notice: {pair.arm} changes {pair.one.change} in one study, and {pair.other.change} in the other")


def _finding(path: Path, runs_dir: Path) -> dict[str, Any]:
    """What a study has found, in the form of its report; of a study file, what its runs say now."""
    from fromscratch.files import read_json_object
    from fromscratch.studies.past import FORMAT, finding_of
    from fromscratch.studies.prices import Prices
    from fromscratch.studies.registry import borrowed_spread
    from fromscratch.studies.results import held_out_name, judge, validation_losses
    from fromscratch.studies.verbs import open_folder

    if path.suffix == ".json":
        finding = read_json_object(path)
        if finding.get("kind") != FORMAT:
            raise UsageError(f"{path}: not the report of a study; 'fromscratch study report' writes one")
        return finding
    folder = open_folder(path, runs_dir)
    judgement = judge(folder, validation_losses(folder), borrowed=borrowed_spread(folder.study))
    return finding_of(folder, judgement, Prices(folder).forecasts(), measured_on=held_out_name(folder.study))


def _effect(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _pair_cells(pair: "Pair") -> tuple[str, ...]:
    interval = "no interval yet" if pair.low is None or pair.high is None else f"{pair.low:+.4f} to {pair.high:+.4f}"
    return (
        *(printable(pair.arm), _effect(pair.one.effect), pair.one.interval),
        *(_effect(pair.other.effect), pair.other.interval),
        *(_effect(pair.difference), interval, pair.verdict),
    )


def tried(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key of the run file, such as train.clip.")],
    folder: Annotated[Path, typer.Option("--studies", help="Folder of studies and their reports.")] = Path("studies"),
    as_json: JsonFlag = False,
) -> None:
    """Show what earlier studies found about a key of the run file.

    Reads the reports below the folder, and those that this user's studies left in the data folder.

    Example: fromscratch study tried model.dropout
    """
    from fromscratch.studies.past import arms_of, check_key, find_studies, studies_without_report

    check_key(key)
    findings = list(find_studies(folder))
    found = [arm for finding in findings for arm in arms_of(finding) if arm.change_of(key)]
    waiting = list(studies_without_report(folder, key, {str(one["identity"]) for one in findings}))
    if as_json:
        print_json({"key": key, "arms": [asdict(arm) for arm in found], "without_report": list(map(str, waiting))})
        return
    if found:
        heads = (
            "study",
            "arm",
            "change",
            "effect",
            "interval",
            "verdict",
            "diverged or stopped",
            "measured on",
            "date",
        )
        print_columns(heads, [_cells(arm, key) for arm in found])
    else:
        note(f"no study with a report has changed {key}")
    for path in waiting:
        note(f"{path}: changes {key}, and has no report yet")


def _cells(arm: "Found", key: str) -> tuple[str, ...]:
    return (
        *(printable(arm.study), printable(arm.arm), printable(arm.change_of(key))),
        *(_effect(arm.effect), arm.interval, arm.verdict),
        *(str(arm.lost_runs), arm.measured_on, arm.at[:10]),
    )
