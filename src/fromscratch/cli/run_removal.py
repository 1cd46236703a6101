"""``fromscratch runs clean`` and ``fromscratch runs rm``: remove parts of runs, or whole runs."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.options import JsonFlag, QuietFlag, RunsDir
from fromscratch.cli.output import note, print_columns, print_json, printable
from fromscratch.cli.run_arguments import SomeRuns, resolve_all
from fromscratch.errors import UsageError
from fromscratch.files import readable_bytes

if TYPE_CHECKING:
    from fromscratch.runs.cleaning import Removal


def remove(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or paths of runs.")],
    runs_dir: RunsDir = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove without a question.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Remove whole runs, checkpoints and records included, after a question.

    A run that is being trained, a link, and a folder that also holds other files are refused; then nothing is removed.

    Example: fromscratch runs rm first-try second-try
    """
    from fromscratch.runs.cleaning import plan_run_removals, remove_runs

    planned = plan_run_removals(resolve_all(runs, runs_dir))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("runs rm: asks before it removes, but there is no terminal; add --yes")
        _print_removals(planned)
        count = "this run" if len(planned) == 1 else f"these {len(planned)} runs"
        if not typer.confirm(f"Remove {count}, {readable_bytes(_total(planned))}?", err=True):
            note("nothing was removed")
            return
    remove_runs(planned)
    report(planned, [], done=True, as_json=as_json, quiet=quiet)


def clean(
    runs: SomeRuns = None,
    runs_dir: RunsDir = Path("runs"),
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Newest checkpoints to keep besides the best; default: the run's own setting."),
    ] = None,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Also remove runs that --fresh set aside (NAME.old-1).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only list what would be removed.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """List, and with --yes remove, old checkpoints and what interrupted saves left.

    The best checkpoint and the newest valid ones are kept. A run that is being trained is skipped.

    Example: fromscratch runs clean baseline --keep 1 --yes
    """
    from fromscratch.config.loading import read_run_config
    from fromscratch.runs import cleaning

    removed: list[Removal] = []
    restored: list[Path] = []
    for run in resolve_all(runs, runs_dir):
        if not runs and (holder := run.holder()):
            note(f"{printable(run.name)}: is being trained by {holder}; skipped", quiet=quiet)
            continue
        if any(run.path == one.path for one in removed) and set_aside:
            continue  # removed with the run that it belonged to
        cleaning.refuse_if_trained(run)
        kept = keep or read_run_config(run.config).train.keep_checkpoints
        if yes:
            gone, back = cleaning.clean(run, keep=kept, set_aside=set_aside)
            removed, restored = removed + gone, restored + back
        else:
            removed += cleaning.plan_cleaning(run, keep=kept, set_aside=set_aside)
    if not runs:
        removed += cleaning.interrupted_removals(runs_dir, finish=yes)
    report(removed, restored, done=yes, as_json=as_json, quiet=quiet)


def report(removed: "list[Removal]", restored: list[Path], *, done: bool, as_json: bool, quiet: bool) -> None:
    """Prints what was removed, or with ``done=False`` what would be."""
    total = _total(removed)
    if as_json:
        items = [asdict(one) | {"path": str(one.path)} for one in removed]
        print_json({"removed": done, "items": items, "put_back": [str(path) for path in restored], "bytes": total})
        return
    if removed:
        _print_removals(removed)
    for path in restored:
        print(f"{printable(str(path))}: restored; its replacement was never completed")
    size = readable_bytes(total)
    outcome = f"removed, {size} freed" if done else f"nothing was removed; --yes frees {size}"
    note(outcome if removed else "nothing to remove", quiet=quiet)


def _print_removals(removals: "list[Removal]") -> None:
    rows = [(printable(str(one.path)), one.kind, one.why, readable_bytes(one.size_bytes)) for one in removals]
    print_columns(("path", "what", "why", "size"), rows)


def _total(removals: "list[Removal]") -> int:
    return sum(one.size_bytes for one in removals)
