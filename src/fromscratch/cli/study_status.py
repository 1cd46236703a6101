"""``fromscratch study status``: the runs of a study and its verdicts so far, as a live table."""

import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag
from fromscratch.cli.output import note, print_columns, print_json
from fromscratch.errors import UsageError
from fromscratch.files import readable_dollars, readable_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Group

    from fromscratch.studies.forecasts import Forecast
    from fromscratch.studies.jobs import Job, StudyFolder
    from fromscratch.studies.prices import Prices
    from fromscratch.studies.results import Judgement

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).")]
RunsDir = Annotated[Path, typer.Option(help="Folder of runs; those of the study are in a folder with its name.")]

REFRESH_SECONDS = 2.0
IDLE_SECONDS = 60.0
"""A live table ends when no run has been trained for so long: between two runs, none is."""
RUN_HEADS = ("run", "state", "step", "loss", "held-out loss", "tokens/s", "time left", "dollars")
VERDICT_HEADS = ("arm", "verdict", "effect", "of the training", "in dollars", "diverged or stopped", "why")


def status(
    study: StudyArgument,
    runs_dir: RunsDir = Path("runs"),
    once: Annotated[bool, typer.Option("--once", help="Print one table, and end.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the runs of a study, and the verdicts so far on the validation slice. The test set stays sealed.

    In a terminal the table is renewed while runs are trained; Ctrl-C ends it, and no run.

    Example: fromscratch study status studies/laptop/interventions.toml
    """
    from fromscratch.studies.prices import Prices
    from fromscratch.studies.verbs import open_folder

    folder = open_folder(study, runs_dir)
    prices = Prices(folder)
    rows = status_rows(folder, prices)
    if not (once or as_json) and sys.stdout.isatty() and _is_training(rows):
        with suppress(KeyboardInterrupt):
            _show_live(folder, prices)
        return
    judgement, problem = _judgement(folder)
    if problem:
        note(f"no verdicts yet: {problem}")
    if as_json:
        from fromscratch.studies.worth import to_dict

        verdicts = to_dict(judgement, prices.forecasts()) if judgement else None
        print_json({"study": folder.study.name, "runs": rows, "record": folder.read(), "verdicts": verdicts})
        return
    print_columns(RUN_HEADS, [_run_cells(row) for row in rows])
    if judgement:
        print()
        print_verdicts(judgement, prices.forecasts())


def status_rows(folder: "StudyFolder", prices: "Prices") -> list[dict[str, Any]]:
    """One row per run. A run that diverged or was stopped by the rule has no loss: its last one is no result."""
    stopped = folder.stopped_early()
    return [_status_row(job, prices, stopped) for job in folder.jobs()]


def _status_row(job: "Job", prices: "Prices", stopped: set[str]) -> dict[str, Any]:
    from fromscratch.runs.overview import overview, recent_speed
    from fromscratch.runs.states import RunState
    from fromscratch.studies.jobs import held_out_losses, is_lost

    run = job.current
    if not run.exists():
        figures = ("step", "num_steps", "training_loss", "loss", "tokens_per_second", "seconds_left", "dollars")
        return {"run": job.name, "state": "missing", **dict.fromkeys(figures)}
    found, losses = overview(run), held_out_losses(run)
    is_counted = not is_lost(job, stopped)
    speed, seconds_per_step = recent_speed(run)
    steps_left = None if found.step is None or found.num_steps is None else found.num_steps - found.step
    is_training = found.state == RunState.RUNNING
    return {
        "run": run.name,
        "state": "stopped by rule" if job.name in stopped else str(job.state),
        "step": found.step,
        "num_steps": found.num_steps,
        "training_loss": found.loss if is_counted else None,
        "loss": losses[max(losses)] if losses and is_counted else None,
        "tokens_per_second": speed,
        "seconds_left": steps_left * seconds_per_step if is_training and steps_left and seconds_per_step else None,
        "dollars": prices.spent(job),
    }


def _is_training(rows: list[dict[str, Any]]) -> bool:
    from fromscratch.runs.states import RunState

    return any(row["state"] == RunState.RUNNING for row in rows)


def _judgement(folder: "StudyFolder") -> "tuple[Judgement | None, str]":
    """The verdicts so far, or why there are none."""
    from fromscratch.studies.registry import borrowed_spread
    from fromscratch.studies.results import judge, validation_losses

    try:
        return judge(folder, validation_losses(folder), borrowed=borrowed_spread(folder.study)), ""
    except UsageError as error:
        return None, str(error)


def _show_live(folder: "StudyFolder", prices: "Prices") -> None:
    from rich.live import Live

    last_training = time.monotonic()
    rows = status_rows(folder, prices)
    with Live(live_table(folder, prices, rows), auto_refresh=False) as live:
        while time.monotonic() - last_training < IDLE_SECONDS:
            time.sleep(REFRESH_SECONDS)
            rows = status_rows(folder, prices)
            if _is_training(rows):
                last_training = time.monotonic()
            live.update(live_table(folder, prices, rows), refresh=True)


def live_table(folder: "StudyFolder", prices: "Prices", rows: list[dict[str, Any]]) -> "Group":
    """The tables of ``study status`` for a terminal; of runs that are done or missing, only the number."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from fromscratch.runs.states import RunState

    judgement, problem = _judgement(folder)
    counts = Counter(row["state"] for row in rows)
    under_way = [row for row in rows if row["state"] not in (RunState.DONE, "missing")]
    shown: list[Any] = [
        Text(f"{len(rows)} runs: {', '.join(f'{count} {state}' for state, count in counts.items())}\n"),
        _table(Table(box=None), RUN_HEADS, [_run_cells(row) for row in under_way]),
    ]
    if judgement:
        shown += [Text(""), _table(Table(box=None), VERDICT_HEADS, verdict_rows(judgement, prices.forecasts()))]
    return Group(*shown, *([Text(f"no verdicts yet: {problem}")] if problem else []))


def _table(table: Any, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Any:
    from rich.text import Text

    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _run_cells(row: "Mapping[str, Any]") -> tuple[str, ...]:

    step = "-" if row["step"] is None else f"{row['step']:,}"
    of = "" if row["num_steps"] is None else f" of {row['num_steps']:,}"
    return (
        row["run"],
        row["state"],
        step + of,
        _cell(row["training_loss"], ".4f"),
        _cell(row["loss"], ".4f"),
        _cell(row["tokens_per_second"], ",.0f"),
        "-" if row["seconds_left"] is None else readable_seconds(row["seconds_left"]),
        "-" if row["state"] == "missing" else "unknown" if row["dollars"] is None else readable_dollars(row["dollars"]),
    )


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def verdict_rows(judgement: "Judgement", forecasts: "Mapping[str, Forecast]") -> list[tuple[str, ...]]:
    """One row per arm."""
    from fromscratch.studies.worth import dollars_saved, why, worth_of

    rows: list[tuple[str, ...]] = []
    for arm in judgement.result.arms:
        worth = worth_of(judgement, arm, forecasts)
        rows.append(
            (
                arm.arm,
                str(arm.verdict),
                _cell(arm.effect, "+.4f"),
                _cell(worth.share_of_training, "+.1%"),
                dollars_saved(worth),
                str(len(arm.runs.diverged)),
                why(arm, worth),
            )
        )
    return rows


def print_verdicts(judgement: "Judgement", forecasts: "Mapping[str, Forecast]") -> None:
    """Prints one row per arm, and the warnings."""
    print_columns(VERDICT_HEADS, verdict_rows(judgement, forecasts))
    for warning in judgement.result.warnings:
        note(f"warning: {warning}")
