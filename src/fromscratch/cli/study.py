"""``fromscratch study``: runs a study and reports its verdicts."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fromscratch.cli import study_fits
from fromscratch.cli.options import DeviceOption, QuietFlag
from fromscratch.cli.output import note, print_columns, print_json
from fromscratch.cli.study_past import compare, tried
from fromscratch.cli.study_status import RunsDir, StudyArgument, print_verdicts, status
from fromscratch.errors import EXIT_CRASH, EXIT_STOPPED, UsageError
from fromscratch.files import readable_dollars

if TYPE_CHECKING:
    from fromscratch.studies.definition import Arm
    from fromscratch.studies.forecasts import Total
    from fromscratch.studies.jobs import StudyFolder
    from fromscratch.studies.runner import Outcome

app = typer.Typer(no_args_is_help=True, help="Change one thing, run it with several seeds, and get a verdict.")

app.command(name="status")(status)
app.command(name="compare")(compare)
app.command(name="tried")(tried)
app.add_typer(study_fits.app, name="fit")

JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Runs at once; by default one per GPU, or one on the CPU.")
]
PricePerHour = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        envvar="FROMSCRATCH_DOLLARS_PER_HOUR",
        help="Price of the machine of one run; by default the last one that a run of the study recorded.",
    ),
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained and what it takes, and train nothing.")
    ] = False,
    limit_dollars: Annotated[
        float | None,
        typer.Option(min=0.0, help="Begin no run with which spent and predicted dollars would exceed this."),
    ] = None,
    dollars_per_hour: PricePerHour = None,
    machines: Annotated[
        list[str] | None,
        typer.Option(
            "--machine",
            metavar="NAME",
            help="With --dry-run: the totals on a machine of machines.toml, or 'here'; repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON on stdout.")] = False,
    quiet: QuietFlag = False,
) -> None:
    """Train the runs of a study that are missing; resume those that were interrupted.

    The first comparison comes soon; then always the run that decides most per dollar. Several of these commands may
    share the work. Ctrl-C saves and stops; the same command continues.

    Example: fromscratch study run studies/laptop/interventions.toml
    """
    if as_json and not dry_run:
        raise UsageError("--json: is for --dry-run; 'fromscratch study status --json' shows what was trained")
    if machines and not dry_run:
        raise UsageError("--machine: is for --dry-run; runs are trained on this machine, or with --engine ray")
    from fromscratch.studies.verbs import open_folder, train_missing

    folder = open_folder(study, runs_dir)
    if dry_run:
        _print_missing(
            folder, device=device, dollars_per_hour=dollars_per_hour, machines=machines or [], as_json=as_json
        )
        return
    outcome = train_missing(
        folder,
        device=device,
        jobs=jobs,
        engine=engine,
        limit_dollars=limit_dollars,
        dollars_per_hour=dollars_per_hour,
        quiet=quiet,
        on_event=lambda line: note(line, quiet=quiet),
    )
    finish(outcome)


def finish(outcome: "Outcome") -> None:
    """Exits as the session ended: 75 after a signal or at the limit of dollars, 1 where a run failed."""
    if outcome.is_interrupted:
        raise typer.Exit(EXIT_STOPPED)
    if outcome.has_failed:
        raise typer.Exit(EXIT_CRASH)
    if outcome.refusal:
        raise typer.Exit(EXIT_STOPPED)


def _print_missing(
    folder: "StudyFolder",
    *,
    device: str | None,
    dollars_per_hour: float | None,
    machines: list[str],
    as_json: bool,
) -> None:
    from fromscratch.cli.plan import dollar_range
    from fromscratch.studies.agenda import Agenda
    from fromscratch.studies.forecasts import remaining, total_of
    from fromscratch.studies.prices import Prices, totals_by_machine

    prices = Prices(folder, device=device, dollars_per_hour=dollars_per_hour)
    waiting, forecasts = Agenda(folder, prices).waiting(), prices.forecasts()
    parts = [remaining(job, forecasts) for job in waiting]
    total = total_of(parts)
    elsewhere = totals_by_machine(folder, waiting, machines) if machines else []
    rows = [
        {
            **{"run": job.name, "state": job.state or "missing", "changes": list(job.arm.changes)},
            **{**asdict(part), "basis": forecasts[job.arm.name].basis},
        }
        for job, part in zip(waiting, parts, strict=True)
    ]
    if as_json:
        print_json({"runs": rows, "total": asdict(total), "machines": [asdict(one) for one in elsewhere]})
        return
    print_columns(
        ("run", "state", "steps", "hours", "dollars", "hours from", "changes"),
        [
            (job.name, job.state or "missing", *figures(part), forecasts[job.arm.name].basis, _changes(job.arm))
            for job, part in zip(waiting, parts, strict=True)
        ],
    )
    steps, hours, dollars = figures(total)
    print(f"\n{total.runs} of {len(folder.jobs())} runs, {steps} steps, {hours} hours, dollars: {dollars}")
    if elsewhere:
        print()
        print_columns(
            ("on machine", "hours", "dollars", "hours from"),
            [
                (
                    one.machine,
                    "unknown" if one.hours is None else f"{one.hours:,.1f}",
                    dollar_range(one.dollars),
                    one.basis,
                )
                for one in elsewhere
            ],
        )
    note(
        "the order changes as runs end: after the first comparison, the run that decides most per dollar is next; "
        "hours are those of one run after another"
    )


def figures(total: "Total") -> tuple[str, str, str]:
    """Steps, hours and dollars in a table; ``unknown`` where nothing was measured or no price is known."""
    unknown = "unknown"
    return (
        unknown if total.steps is None else f"{total.steps:,}",
        unknown if total.hours is None else f"{total.hours:,.2f}",
        unknown if total.dollars is None else readable_dollars(total.dollars),
    )


def _changes(arm: "Arm") -> str:
    return "; ".join(arm.changes) or "-"


@app.command(name="report")
def report(
    study: StudyArgument,
    runs_dir: RunsDir = Path("runs"),
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Report on the validation slice, and leave the test set sealed.")
    ] = False,
    dollars_per_hour: PricePerHour = None,
    device: DeviceOption = None,
    quiet: QuietFlag = False,
) -> None:
    """Write the report of a study: Markdown, one HTML page, pictures, JSON. Opens the sealed test set.

    Every run is measured on the test set once, and every opening is on the record. Tune and look with 'study status'
    and 'study report --sealed'; open the test set when the study is over.

    Example: fromscratch study report studies/laptop/interventions.toml
    """
    from fromscratch.studies.verbs import open_folder

    folder = open_folder(study, runs_dir)
    make_report(folder, sealed=sealed, dollars_per_hour=dollars_per_hour, device=device, quiet=quiet)


def make_report(
    folder: "StudyFolder", *, sealed: bool, device: str | None, quiet: bool, dollars_per_hour: float | None = None
) -> None:
    """Writes the report and prints the verdicts."""
    from fromscratch.studies.prices import Prices
    from fromscratch.studies.verbs import report_study

    written = report_study(
        folder,
        sealed=sealed,
        device=device,
        dollars_per_hour=dollars_per_hour,
        on_run=lambda name: note(f"test set: {name}", quiet=quiet),
    )
    prices = Prices(folder, device=device, dollars_per_hour=dollars_per_hour)
    print_verdicts(written.judgement, prices.forecasts())
    note(f"{written.page}: the report, on the {written.measured_on}", quiet=quiet)


@app.command(name="try")
def try_change(
    runfile: Annotated[Path, typer.Argument(metavar="RUNFILE", help="The run file (TOML) of the baseline.")],
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="The change; repeatable.")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs of the change, and of the baseline.")] = 3,
    tune: Annotated[
        Path | None, typer.Option(metavar="RUNFILE", help="Tune every model by this run file, and compare the tuned.")
    ] = None,
    measure: Annotated[
        Literal["loss", "accuracy", "balanced-accuracy"] | None,
        typer.Option(help="What is compared; by default the loss. The accuracies are those of classifiers."),
    ] = None,
    smallest_effect: Annotated[
        float | None, typer.Option(help="Smallest effect of interest, in nats or as a share; needed for tuned models.")
    ] = None,
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
    from fromscratch.studies.verbs import open_folder, train_missing

    settings = {"measure": measure, "smallest_effect": smallest_effect}
    file = write_study(runfile, overrides, seeds, name, runs_dir, tune=tune, **settings)
    folder = open_folder(file, runs_dir)
    note(f"{file}: {len(folder.jobs())} runs", quiet=quiet)
    outcome = train_missing(
        folder, device=device, jobs=jobs, quiet=quiet, on_event=lambda line: note(line, quiet=quiet)
    )
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
    from fromscratch.studies.verbs import open_folder

    folder = open_folder(study, runs_dir)
    if folder.study.config.design == "fixed":
        raise UsageError(
            f'{study}: design = "fixed" is valid for the declared seeds only; declare more before the first report, '
            'or use design = "sequential"'
        )
    taken = [*folder.study.config.seeds, *folder.read().get("added_seeds", [])]
    new = list(range(max(taken) + 1, max(taken) + 1 + count))
    folder.update(added_seeds=[*folder.read().get("added_seeds", []), *new])
    note(f"added seeds {', '.join(map(str, new))}; 'fromscratch study run {study}' trains them")
