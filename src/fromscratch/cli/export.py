"""``fromscratch runs export``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fromscratch.cli.options import RunsDir
from fromscratch.cli.output import note
from fromscratch.errors import UsageError


class Target(StrEnum):
    """Where the numbers go."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"
    TRACKIO = "trackio"


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its path.")],
    to: Annotated[Target, typer.Option("--to", help="The tool.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The new file or folder; by default NAME.csv, NAME-tensorboard; not for trackio."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a run's metrics and held-out losses for another tool. The run stays as it is.

    Example: fromscratch runs export baseline --to csv --out baseline.csv
    """
    from fromscratch.runs.export import export_csv, export_to
    from fromscratch.runs.overview import resolve_run

    if to == Target.TRACKIO and out is not None:
        raise UsageError(f"--out {out}: trackio keeps its files itself; leave it out")
    directory = resolve_run(run, runs_dir)
    if to == Target.CSV:
        out = out or Path(f"{directory.name}.csv")
        count = export_csv(directory, out)
    else:
        if to == Target.TENSORBOARD:
            out = out or Path(f"{directory.name}-tensorboard")
        count = export_to(to, directory, out)
    note(f"{count:,} steps written to {out or 'trackio, project fromscratch'}")
