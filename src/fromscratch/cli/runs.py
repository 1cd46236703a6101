"""``fromscratch runs``: what runs there are, whether they are whole, and what they can do without."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag, QuietFlag
from fromscratch.cli.output import local_time, note, print_columns, print_json, print_table, printable, show
from fromscratch.errors import EXIT_DATA
from fromscratch.files import readable_bytes

if TYPE_CHECKING:
    from fromscratch.runs.cleaning import Removal
    from fromscratch.runs.details import CheckpointFacts, Details
    from fromscratch.runs.directory import RunDirectory
    from fromscratch.runs.overview import Overview

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, inspect, verify and clean runs.")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its path.")]
SomeRuns = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Names or paths; all runs by default.")]
RunsDir = Annotated[Path, typer.Option(help="Folder of runs.")]


@app.callback()
def common() -> None:
    """List, inspect, verify and clean runs."""


@app.command(name="list")
def list_runs(runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """What runs there are, how far they are, and how well they do.

    A run that is not trained any more and never ended is shown as interrupted: the same command goes on.

    Example: fromscratch runs list --runs-dir runs
    """
    from fromscratch.runs.overview import overview, runs_in

    found = [overview(run) for run in runs_in(runs_dir)]
    if as_json:
        print_json([asdict(one) for one in found])
    elif not found:
        note(f"no runs in {runs_dir}")
    else:
        heads = ("run", "state", "step", "done", "loss", "best", "size", "updated")
        print_columns(heads, [_row(one) for one in found])


@app.command(name="show")
def show_run(run: RunArgument, runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """One run: state, what its config changes, machine, checkpoints, evaluations, events, steps by outcome.

    Of the checkpoints only sizes are checked; 'fromscratch runs verify' reads every byte.

    Example: fromscratch runs show baseline
    """
    from fromscratch.runs.details import details_of

    named = _named(run, runs_dir)
    details, config = details_of(named), _config_changes(named)
    if as_json:
        checkpoints = [asdict(one) | {"valid": one.valid} for one in details.checkpoints]
        facts = asdict(details)
        print_json({**facts.pop("overview"), "config": config, **facts, "checkpoints": checkpoints})
    else:
        _print_details(details, config)


@app.command()
def verify(runs: SomeRuns = None, runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """Read every file of every checkpoint and compare it with its checksum; exit code 3 where one is damaged.

    Example: fromscratch runs verify baseline
    """
    from fromscratch.runs.details import checkpoint_facts, other_problems

    checked: list[dict[str, Any]] = [
        {
            "name": run.name,
            "path": str(run.path),
            "checkpoints": [asdict(one) | {"valid": one.valid} for one in checkpoint_facts(run, checksums=True)],
            "other_problems": other_problems(run),
        }
        for run in _chosen(runs, runs_dir)
    ]
    problems = [
        problem
        for run in checked
        for problem in (*(p for one in run["checkpoints"] for p in one["problems"]), *run["other_problems"])
    ]
    if as_json:
        print_json({"runs": checked, "problems": problems})
    else:
        for run in checked:
            sizes = sum(one["size_bytes"] for one in run["checkpoints"])
            bad = sum(not one["valid"] for one in run["checkpoints"])
            count = f"{len(run['checkpoints'])} checkpoints, {readable_bytes(sizes)}"
            print(f"{printable(run['name'])}: {count}, {f'{bad} damaged' if bad else 'whole'}")
        for problem in problems:
            note(f"error: {printable(problem)}")
    if problems:
        raise typer.Exit(EXIT_DATA)


@app.command()
def clean(
    runs: SomeRuns = None,
    runs_dir: RunsDir = Path("runs"),
    keep: Annotated[
        int | None, typer.Option(min=1, help="Newest checkpoints to keep beside the best; as the run says by default.")
    ] = None,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Remove runs that --fresh set aside (NAME.old-1) too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only show what would go.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Remove old checkpoints and what interrupted saves left; shows what would go, and with --yes does it.

    The best checkpoint and the newest valid ones stay. A run that is being trained is left alone.

    Example: fromscratch runs clean baseline --keep 1 --yes
    """
    from fromscratch.runs import cleaning

    removed: list[Removal] = []
    put_back: list[Path] = []
    for run in _chosen(runs, runs_dir):
        if not runs and (holder := run.holder()):
            note(f"{printable(run.name)}: is being trained by {holder}, left alone", quiet=quiet)
            continue
        if any(run.path == one.path for one in removed) and set_aside:
            continue  # gone already, with the run that it was set aside for
        cleaning.refuse_if_trained(run)
        kept = keep or _kept_by_config(run)
        if yes:
            gone, back = cleaning.clean(run, keep=kept, set_aside=set_aside)
            removed, put_back = removed + gone, put_back + back
        else:
            removed += cleaning.plan_cleaning(run, keep=kept, set_aside=set_aside)
    if not runs:
        halves = cleaning.half_removed_runs(runs_dir)
        removed += halves
        if yes:
            cleaning.remove_half_removed(halves)
    _report_cleaning(removed, put_back, done=yes, as_json=as_json, quiet=quiet)


def _report_cleaning(removed: "list[Removal]", put_back: list[Path], *, done: bool, as_json: bool, quiet: bool) -> None:
    total = sum(one.size_bytes for one in removed)
    if as_json:
        items = [asdict(one) | {"path": str(one.path)} for one in removed]
        print_json({"removed": done, "items": items, "put_back": [str(path) for path in put_back], "bytes": total})
        return
    if removed:
        rows = [(printable(str(one.path)), one.kind, one.why, readable_bytes(one.size_bytes)) for one in removed]
        print_columns(("path", "what", "why", "size"), rows)
    for path in put_back:
        print(f"{printable(str(path))}: put back, its replacement was never finished")
    if not removed:
        note("nothing to remove", quiet=quiet)
    elif done:
        note(f"removed, {readable_bytes(total)} freed", quiet=quiet)
    else:
        note(f"nothing was removed; --yes frees {readable_bytes(total)}", quiet=quiet)


def _named(word: str, runs_dir: Path) -> "RunDirectory":
    from fromscratch.runs.overview import named_run

    run = named_run(word, runs_dir)
    if run.path.is_symlink():
        note(f"notice: {printable(str(run.path))} is a link to {printable(str(run.path.resolve()))}")
    return run


def _chosen(words: list[str] | None, runs_dir: Path) -> "list[RunDirectory]":
    from fromscratch.runs.overview import runs_in

    return [_named(word, runs_dir) for word in words] if words else runs_in(runs_dir)


def _config_changes(run: "RunDirectory") -> dict[str, Any]:
    from fromscratch.config.loading import parse_run_config, read_toml
    from fromscratch.config.run import changed_values
    from fromscratch.errors import UsageError

    try:
        return changed_values(parse_run_config(read_toml(run.config), where=str(run.config)))
    except UsageError as error:
        return {"problem": str(error)}


def _kept_by_config(run: "RunDirectory") -> int:
    from fromscratch.config.loading import parse_run_config, read_toml

    return parse_run_config(read_toml(run.config), where=str(run.config)).train.keep_checkpoints


def _row(one: "Overview") -> tuple[str, ...]:
    best = "-" if one.best_loss is None else f"{one.best_loss:.4f} at {show(one.best_step)}"
    return (
        printable(one.name),
        one.state,
        f"{_or_dash(one.step)} of {_or_dash(one.num_steps)}",
        "-" if one.progress is None else f"{one.progress:.0%}",
        "-" if one.loss is None else f"{one.loss:.4f}",
        best,
        readable_bytes(one.size_bytes),
        local_time(one.updated_at),
    )


def _or_dash(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _print_details(details: "Details", config: dict[str, Any]) -> None:
    one = details.overview
    _, state, step, done, loss, best, size, updated = _row(one)
    print_table(
        [
            ("run", printable(one.path)),
            ("state", f"{state} ({printable(one.reason)})" if one.reason else state),
            ("step", f"{step}, {done}"),
            ("training loss", loss),
            ("best loss", best),
            ("size", size),
            ("began", local_time(one.began_at)),
            ("updated", updated),
            ("steps on record", _counts(details.outcomes)),
            ("clipped", details.clipped),
            ("not finite", details.nonfinite),
            ("events", _counts(details.events)),
        ]
    )
    _print_facts("config, where it differs from the defaults", config)
    _print_facts("machine", details.machine)
    if details.checkpoints:
        print("\ncheckpoints (sizes checked; 'runs verify' reads every byte)")
        print_columns(("name", "step", "size", "files", ""), [_checkpoint_row(c) for c in details.checkpoints])
    for name, facts in details.evaluations.items():
        _print_facts(
            f"evaluation {printable(name)}", {k: v for k, v in facts.items() if not isinstance(v, dict | list)}
        )


def _print_facts(title: str, facts: dict[str, Any]) -> None:
    if facts:
        print(f"\n{title}")
        print_table([(f"  {printable(str(key))}", printable(_value(value))) for key, value in facts.items()])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else show(value)


def _checkpoint_row(one: "CheckpointFacts") -> tuple[str, ...]:
    marks = ", ".join(name for name, given in (("latest", one.latest), ("best", one.best)) if given)
    files = "whole" if one.valid else printable(one.problems[0])
    return one.name, f"{one.step:,}", readable_bytes(one.size_bytes), files, marks


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counts.items()) or "none"
