"""Arguments that the verbs of ``fromscratch runs`` share, and the runs that they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.output import note, printable

if TYPE_CHECKING:
    from fromscratch.runs.directory import RunDirectory

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its path.")]
SomeRuns = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Names or paths; all runs by default.")]


def resolve(name: str, runs_dir: Path) -> "RunDirectory":
    """Finds a run by its name or path; says so if it is a link. Raises UsageError if there is none."""
    from fromscratch.runs.overview import resolve_run

    run = resolve_run(name, runs_dir)
    if run.path.is_symlink():
        note(f"notice: {printable(str(run.path))} is a link to {printable(str(run.path.resolve()))}")
    return run


def resolve_all(names: list[str] | None, runs_dir: Path) -> "list[RunDirectory]":
    """Finds the named runs; all runs of the folder if none is named. Raises UsageError."""
    from fromscratch.runs.overview import runs_in

    return [resolve(name, runs_dir) for name in names] if names else runs_in(runs_dir)
