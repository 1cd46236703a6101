"""``fromscratch study``: runs a study and reports its verdicts."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, QuietFlag
from fromscratch.cli.output import note, print_columns, print_json
from fromscratch.errors import EXIT_CRASH, EXIT_STOPPED, UsageError

if TYPE_CHECKING:
    from fromscratch.studies.jobs import Job, StudyFolder
    from fromscratch.studies.results import Judgement
    from fromscratch.studies.runner import Devices, Outcome

app = typer.Typer(no_args_is_help=True, help="Change one thing, run it with several seeds, and get a verdict.")

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).")]
RunsDir = Annotated[Path, typer.Option(help="Folder of runs; those of the study are in a folder with its name.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Runs at once; by default one per GPU, or one on the CPU.")
]
EngineOption = Annotated[
    Literal["local", "ray"], typer.Option(help="Where runs are trained: here, or on the nodes of a Ray cluster.")
]


@app.command(name="run")
def run(
    study: StudyArgument,
    runs_dir: RunsDir = Path("runs"),
    device: DeviceOption = None,
    jobs: JobsOption = None,
    engine: EngineOption = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be trained, and train nothing.")] = False,
    quiet: QuietFlag = False,
) -> None:
    """Train the runs of a study that are missing; resume those that were interrupted.

    Several of these commands may share the work. Ctrl-C saves and stops; the same command continues.

    Example: fromscratch study run studies/laptop/interventions.toml
    """
    folder = open_study(study, runs_dir)
    if dry_run:
        _print_missing(folder)
        return
    finish(train_missing(folder, device=device, jobs=jobs, engine=engine, quiet=quiet))


def open_study(study: Path, runs_dir: Path) -> "StudyFolder":
    """Opens a study file and the folder of its runs, with the seeds that were added."""
    from fromscratch.studies.definition import load_study
    from fromscratch.studies.jobs import StudyFolder

    folder = StudyFolder(load_study(study), runs_dir)
    added = folder.read().get("added_seeds", [])
    return StudyFolder(load_study(study, added_seeds=tuple(added)), runs_dir) if added else folder


def train_missing(
    folder: "StudyFolder", *, device: str | None, jobs: int | None, engine: str, quiet: bool
) -> "Outcome":
    """Trains the missing runs with the chosen engine."""
    from fromscratch.studies.runner import run_study

    options = ["--quiet"] if quiet else []
    if device:
        options += ["--device", device]
    with ExitStack() as stack:
        devices: Devices
        if engine == "ray":
            from fromscratch.data.engines.ray_cluster import connected_ray
            from fromscratch.studies.ray_cluster import RayDevices

            devices = RayDevices(stack.enter_context(connected_ray()), options, jobs=jobs)
        else:
            from fromscratch.studies.runner import LocalDevices, local_slots

            devices = LocalDevices(local_slots(device, jobs), options)
        return run_study(folder, devices, on_event=lambda line: note(line, quiet=quiet))


def finish(outcome: "Outcome") -> None:
    """Exits as the session ended: 75 after a signal, 1 where a run failed."""
    if outcome.is_interrupted:
        raise typer.Exit(EXIT_STOPPED)
    if outcome.has_failed:
        raise typer.Exit(EXIT_CRASH)


def _print_missing(folder: "StudyFolder") -> None:
    from fromscratch.studies.jobs import missing

    waiting = missing(folder)
    done = Counter(str(job.state or "missing") for job in folder.jobs())
    print_columns(
        ("run", "state", "changes"),
        [(job.name, job.state or "missing", "; ".join(job.arm.changes) or "-") for job in waiting],
    )
    note(f"{len(waiting)} of {done.total()} runs would be trained, in this order")


@app.command(name="status")
def status(study: StudyArgument, runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """Show the runs of a study, and the verdicts so far on the validation slice. The test set stays sealed.

    Example: fromscratch study status studies/laptop/interventions.toml
    """
    from fromscratch.studies.registry import borrowed_spread
    from fromscratch.studies.results import judge, validation_losses

    folder = open_study(study, runs_dir)
    rows = [_status_row(folder, job) for job in folder.jobs()]
    try:
        judgement = judge(folder, validation_losses(folder), borrowed=borrowed_spread(folder.study))
    except UsageError as error:
        judgement = None
        note(f"no verdicts yet: {error}")
    if as_json:
        verdicts = asdict(judgement.result) if judgement else None
        print_json({"study": folder.study.name, "runs": rows, "record": folder.read(), "verdicts": verdicts})
        return
    print_columns(("run", "state", "step", "held-out loss"), [tuple(map(_cell, row.values())) for row in rows])
    if judgement:
        print()
        _print_verdicts(judgement)


def _print_verdicts(judgement: "Judgement") -> None:
    rows = [(arm.arm, str(arm.verdict), _cell(arm.effect, "+.4f"), arm.reason) for arm in judgement.result.arms]
    print_columns(("arm", "verdict", "effect", "why"), rows)
    for warning in judgement.result.warnings:
        note(f"warning: {warning}")


def _status_row(folder: "StudyFolder", job: "Job") -> dict[str, Any]:
    from fromscratch.runs.overview import observed_status
    from fromscratch.studies.jobs import held_out_losses

    if not job.run.exists():
        return {"run": job.name, "state": "missing", "step": None, "loss": None}
    found, losses = observed_status(job.run), held_out_losses(job.run)
    state = "stopped by rule" if job.name in folder.stopped_early() else str(found.state)
    return {"run": job.name, "state": state, "step": found.step, "loss": losses[max(losses)] if losses else None}


def _cell(value: Any, form: str = ".4f") -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" if isinstance(value, float) else str(value)


@app.command(name="report")
def report(
    study: StudyArgument,
    runs_dir: RunsDir = Path("runs"),
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Report on the validation slice, and leave the test set sealed.")
    ] = False,
    dollars_per_hour: Annotated[
        float | None, typer.Option(min=0.0, help="Price of the machine, for the costs.")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietFlag = False,
) -> None:
    """Write the report of a study: Markdown, one HTML page, pictures, JSON. Opens the sealed test set.

    Every run is measured on the test set once, and every opening is on the record. Tune and look with 'study status'
    and 'study report --sealed'; open the test set when the study is over.

    Example: fromscratch study report studies/laptop/interventions.toml
    """
    folder = open_study(study, runs_dir)
    make_report(folder, sealed=sealed, dollars_per_hour=dollars_per_hour, device=device, quiet=quiet)


def make_report(
    folder: "StudyFolder", *, sealed: bool, device: str | None, quiet: bool, dollars_per_hour: float | None = None
) -> None:
    """Writes the report and prints the verdicts."""
    from fromscratch.studies.definition import CONTROL
    from fromscratch.studies.noise import spread_within_arms
    from fromscratch.studies.registry import borrowed_spread, lend
    from fromscratch.studies.report import write_report
    from fromscratch.studies.results import judge, validation_losses

    if sealed:
        losses, measured_on = validation_losses(folder), "validation slice"
    else:
        from fromscratch.studies.test_set import open_test_set

        losses = open_test_set(folder, device=device, on_run=lambda name: note(f"test set: {name}", quiet=quiet))
        measured_on = "test set"
    judgement = judge(folder, losses, borrowed=borrowed_spread(folder.study))
    page = write_report(folder, judgement, measured_on=measured_on, dollars_per_hour=dollars_per_hour)
    result = judgement.result
    finite = {arm.arm: arm.runs.losses for arm in result.arms} | {CONTROL: result.control.losses}
    lend(folder.study, spread_within_arms(finite))
    _print_verdicts(judgement)
    note(f"{page}: the report, on the {measured_on}", quiet=quiet)


@app.command(name="try")
def try_change(
    runfile: Annotated[Path, typer.Argument(metavar="RUNFILE", help="The run file (TOML) of the baseline.")],
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="The change; repeatable.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of the change, and of the baseline.")] = 3,
    name: Annotated[str | None, typer.Option(help="Name of the study; by default the file's and the key's.")] = None,
    runs_dir: RunsDir = Path("runs"),
    device: DeviceOption = None,
    jobs: JobsOption = None,
    quiet: QuietFlag = False,
) -> None:
    """Ask whether one change helps: makes the smallest study there is, runs it, and reports.

    The same command continues an interrupted study, and a larger --seeds adds runs.

    Example: fromscratch study try baseline.toml --set model.dropout=0.0 --seeds 3
    """
    from fromscratch.studies.single import write_study

    file = write_study(runfile, overrides, seeds, name, runs_dir)
    folder = open_study(file, runs_dir)
    note(f"{file}: {len(folder.jobs())} runs", quiet=quiet)
    outcome = train_missing(folder, device=device, jobs=jobs, engine="local", quiet=quiet)
    if outcome.is_interrupted or outcome.has_failed:
        finish(outcome)
    make_report(folder, sealed=True, device=device, quiet=quiet)


@app.command(name="add-seeds")
def add_seeds(
    study: StudyArgument,
    count: Annotated[int, typer.Argument(min=1, help="Seeds to add to every intervention.")],
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Add seeds to a study; 'study run' trains them. A sequential design stays valid, a fixed one does not.

    Example: fromscratch study add-seeds studies/laptop/interventions.toml 2
    """
    folder = open_study(study, runs_dir)
    if folder.study.config.design == "fixed":
        raise UsageError(
            f'{study}: design = "fixed" is valid for the declared seeds only; declare more before the first report, '
            'or use design = "sequential"'
        )
    taken = [*folder.study.config.seeds, *folder.read().get("added_seeds", [])]
    new = list(range(max(taken) + 1, max(taken) + 1 + count))
    folder.update(added_seeds=[*folder.read().get("added_seeds", []), *new])
    note(f"added seeds {', '.join(map(str, new))}; 'fromscratch study run {study}' trains them")
