"""``fromscratch compare``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag, RunsDir
from fromscratch.cli.output import note, print_columns, print_json, printable, show
from fromscratch.errors import UsageError
from fromscratch.files import readable_seconds

if TYPE_CHECKING:
    from fromscratch.runs.comparison import ComparedRun

NOT_GIVEN = "-"


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or paths of two or more runs.")],
    runs_dir: RunsDir = Path("runs"),
    picture: Annotated[Path | None, typer.Option(help="Draw the loss curves over one another (PNG).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare runs: key figures side by side, the config values that differ, and the loss curves as a picture.

    A difference between two runs may be the noise of their seeds; one run each does not tell.

    Example: fromscratch compare baseline no-dropout --picture losses.png
    """
    from fromscratch.runs.charts import draw_comparison
    from fromscratch.runs.comparison import labels_of
    from fromscratch.runs.overview import resolve_run
    from fromscratch.session.comparison import compare_runs

    directories = [resolve_run(run, runs_dir) for run in runs]
    comparison = compare_runs(directories)
    if picture is not None:
        try:
            draw_comparison(picture, labels_of(directories))
        except OSError as error:
            raise UsageError(f"--picture {picture}: cannot be written ({error.strerror})") from error
    if as_json:
        print_json(asdict(comparison))
        return
    heads = ("run", "state", "step", "tokens", "final loss", "best loss", "tokens/s", "time", "dollars")
    print_columns(heads, [_row(row) for row in comparison.runs])
    if comparison.config:
        print("\nconfig: values that differ")
        labels = [printable(row.label) for row in comparison.runs]
        lines = [(key, *(_value(value) for value in values.values())) for key, values in comparison.config.items()]
        print_columns(("key", *labels), lines)
    else:
        print("\nconfig: the same")
    if picture is None:
        note("--picture FILE draws the loss curves")


def _row(one: "ComparedRun") -> tuple[str, ...]:
    best = NOT_GIVEN if one.best_loss is None else f"{one.best_loss:.4f} at {show(one.best_step)}"
    return (
        printable(one.label),
        one.state,
        f"{_count(one.step)} of {_count(one.num_steps)}",
        _count(one.tokens),
        NOT_GIVEN if one.final_loss is None else f"{one.final_loss:.4f}",
        best,
        NOT_GIVEN if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
        readable_seconds(one.total_seconds),
        "unknown" if one.dollars is None else f"${one.dollars:,.2f}",
    )


def _count(value: int | None) -> str:
    return NOT_GIVEN if value is None else f"{value:,}"


def _value(value: Any) -> str:
    return NOT_GIVEN if value is None else printable(str(value))
