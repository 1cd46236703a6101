"""``fromscratch runs``: lists, shows, verifies and cleans runs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag, QuietFlag
from fromscratch.cli.output import local_time, note, print_columns, print_json, print_table, printable, show
from fromscratch.errors import EXIT_DATA
from fromscratch.files import readable_bytes

if TYPE_CHECKING:
    from fromscratch.config.run import RunConfig
    from fromscratch.runs.cleaning import Removal
    from fromscratch.runs.details import CheckpointInfo, Details
    from fromscratch.runs.directory import RunDirectory
    from fromscratch.runs.overview import Overview

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, inspect, verify and clean runs.")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its path.")]
SomeRuns = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Names or paths; all runs by default.")]
RunsDir = Annotated[Path, typer.Option(help="Folder of runs.")]


@app.command(name="list")
def list_runs(runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """List all runs with their state, progress and losses.

    A run that was killed is shown as interrupted; the same train command resumes it. The best loss is that of the
    best checkpoint, measured on at most [eval] tokens of held-out text; 'eval loss' takes the whole split, so its
    result differs.

    Example: fromscratch runs list --runs-dir runs
    """
    from fromscratch.runs.overview import overview, runs_in

    found = [(overview(run), run) for run in runs_in(runs_dir)]
    if as_json:
        print_json([asdict(one) | {"best_measure": _best_measure(run)} for one, run in found])
    elif not found:
        note(f"no runs in {runs_dir}")
    else:
        heads = ("run", "state", "step", "done", "loss", "best", "size", "updated")
        print_columns(heads, [_row(one) for one, _ in found])
        note("best: lowest loss on at most [eval] tokens of held-out text; 'eval loss' takes the whole split")


@app.command(name="show")
def show_run(run: RunArgument, runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """Show one run: state, config by steps, machine, checkpoints, evaluations, events, steps by outcome.

    Only the sizes of checkpoint files are checked; 'fromscratch runs verify' reads every byte.

    Example: fromscratch runs show baseline
    """
    from fromscratch.runs.details import details_of

    directory = _resolve(run, runs_dir)
    details, config = details_of(directory), _config_changes(directory)
    sessions = _config_by_steps(directory, details.overview.step)
    if as_json:
        values = asdict(details)
        print_json(
            {
                **values.pop("overview"),
                "best_measure": _best_measure(directory),
                "config": config,
                "config_by_steps": sessions,
                **values,
            }
        )
    else:
        _print_details(details, _best_measure(directory), config, sessions)


@app.command()
def verify(runs: SomeRuns = None, runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """Compare every file of every checkpoint with its checksum; exit code 3 if one is damaged.

    Example: fromscratch runs verify baseline
    """
    from fromscratch.runs.details import list_checkpoints, other_problems

    checked: list[dict[str, Any]] = [
        {
            "name": run.name,
            "path": str(run.path),
            "checkpoints": [asdict(one) for one in list_checkpoints(run, checksums=True)],
            "other_problems": other_problems(run),
        }
        for run in _resolve_all(runs, runs_dir)
    ]
    problems: list[str] = []
    for run in checked:
        problems += [problem for one in run["checkpoints"] for problem in one["problems"]] + run["other_problems"]
    if as_json:
        print_json({"runs": checked, "problems": problems})
    else:
        for run in checked:
            sizes = sum(one["size_bytes"] for one in run["checkpoints"])
            bad = sum(not one["valid"] for one in run["checkpoints"])
            count = f"{len(run['checkpoints'])} checkpoints, {readable_bytes(sizes)}"
            print(f"{printable(run['name'])}: {count}, {f'{bad} damaged' if bad else 'all valid'}")
        for problem in problems:
            note(f"error: {printable(problem)}")
    if problems:
        raise typer.Exit(EXIT_DATA)


@app.command()
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
    for run in _resolve_all(runs, runs_dir):
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
    _report_cleaning(removed, restored, done=yes, as_json=as_json, quiet=quiet)


def _report_cleaning(removed: "list[Removal]", restored: list[Path], *, done: bool, as_json: bool, quiet: bool) -> None:
    total = sum(one.size_bytes for one in removed)
    if as_json:
        items = [asdict(one) | {"path": str(one.path)} for one in removed]
        print_json({"removed": done, "items": items, "put_back": [str(path) for path in restored], "bytes": total})
        return
    if removed:
        rows = [(printable(str(one.path)), one.kind, one.why, readable_bytes(one.size_bytes)) for one in removed]
        print_columns(("path", "what", "why", "size"), rows)
    for path in restored:
        print(f"{printable(str(path))}: restored; its replacement was never completed")
    size = readable_bytes(total)
    outcome = f"removed, {size} freed" if done else f"nothing was removed; --yes frees {size}"
    note(outcome if removed else "nothing to remove", quiet=quiet)


def _resolve(name: str, runs_dir: Path) -> "RunDirectory":
    from fromscratch.runs.overview import resolve_run

    run = resolve_run(name, runs_dir)
    if run.path.is_symlink():
        note(f"notice: {printable(str(run.path))} is a link to {printable(str(run.path.resolve()))}")
    return run


def _resolve_all(names: list[str] | None, runs_dir: Path) -> "list[RunDirectory]":
    from fromscratch.runs.overview import runs_in

    return [_resolve(name, runs_dir) for name in names] if names else runs_in(runs_dir)


def _config_changes(run: "RunDirectory") -> dict[str, Any]:
    from fromscratch.config.loading import read_run_config
    from fromscratch.config.run import changed_values
    from fromscratch.errors import UsageError

    try:
        return changed_values(read_run_config(run.config))
    except UsageError as error:
        return {"problem": str(error)}


def _config_by_steps(run: "RunDirectory", last_step: int | None) -> list[dict[str, Any]]:
    """Lists the configs of a run, with the steps that each was used for and its changes from the one before."""
    from fromscratch.config.loading import differences, read_toml
    from fromscratch.errors import UsageError

    found: list[dict[str, Any]] = []
    earlier: dict[str, Any] | None = None
    for begin, path in run.configs_by_step():
        if found:
            found[-1]["last_step"] = begin
        one = {"first_step": begin + 1, "last_step": last_step, "file": str(path)}
        try:
            values = read_toml(path)
            found.append(one | {"changes": [] if earlier is None else differences(earlier, values)})
            earlier = values
        except UsageError as error:
            found.append(one | {"changes": [], "problem": str(error)})
    return found


def _config_of(run: "RunDirectory") -> "RunConfig | None":
    from fromscratch.config.loading import read_run_config
    from fromscratch.errors import UsageError

    try:
        return read_run_config(run.config)
    except UsageError:
        return None


def _best_measure(run: "RunDirectory") -> str | None:
    """The tokens that the best loss was measured on; None if the config cannot be read."""
    config = _config_of(run)
    return None if config is None else config.best_measure


def _row(one: "Overview", measured_on: str = "") -> tuple[str, ...]:
    return (
        printable(one.name),
        one.state,
        f"{_or_dash(one.step)} of {_or_dash(one.num_steps)}",
        _or_dash(one.progress, ".0%"),
        _or_dash(one.loss, ".4f"),
        "-" if one.best_loss is None else f"{one.best_loss:.4f} at {show(one.best_step)}{measured_on}",
        readable_bytes(one.size_bytes),
        local_time(one.updated_at),
    )


def _or_dash(value: float | None, form: str = ",") -> str:
    return "-" if value is None else f"{value:{form}}"


def _print_details(
    details: "Details", best_measure: str | None, config: dict[str, Any], sessions: list[dict[str, Any]]
) -> None:
    one = details.overview
    _, state, step, done, loss, best, size, updated = _row(one, "")
    print_table(
        [
            ("run", printable(one.path)),
            ("state", f"{state} ({printable(one.reason)})" if one.reason else state),
            ("step", f"{step}, {done}"),
            ("training loss", loss),
            ("best loss", f"{best} ({show(best_measure)})"),
            ("size", size),
            ("started", local_time(one.began_at)),
            ("updated", updated),
            ("recorded steps", _counts(details.outcomes)),
            ("clipped", details.clipped),
            ("not finite", details.nonfinite),
            ("events", _counts(details.events)),
        ]
    )
    changed = len(sessions) > 1
    of_steps = f" (from step {sessions[-1]['first_step']:,})" if changed else ""
    _print_section(f"config: values that differ from the defaults{of_steps}", config)
    if changed:
        _print_section("config by steps", dict(map(_session_row, sessions)))
    _print_section("machine", details.machine)
    if details.checkpoints:
        print("\ncheckpoints (sizes checked; 'runs verify' reads every byte)")
        print_columns(("name", "step", "size", "files", ""), [_checkpoint_row(c) for c in details.checkpoints])
    for name, values in details.evaluations.items():
        figures = {key: value for key, value in values.items() if not isinstance(value, dict | list)}
        _print_section(f"evaluation {printable(name)}", figures)


def _session_row(one: dict[str, Any]) -> tuple[str, str]:
    changes = one.get("problem") or ", ".join(one["changes"])
    steps = f"steps {one['first_step']:,} to {show(one['last_step'])}"
    return steps, Path(one["file"]).name + (f": {changes}" if changes else "")


def _print_section(title: str, values: dict[str, Any]) -> None:
    if values:
        print(f"\n{title}")
        print_table([(f"  {printable(str(key))}", printable(_value(value))) for key, value in values.items()])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else show(value)


def _checkpoint_row(one: "CheckpointInfo") -> tuple[str, ...]:
    marks = ", ".join(name for name, given in (("latest", one.latest), ("best", one.best)) if given)
    files = "valid" if one.valid else printable(one.problems[0])
    return one.name, f"{one.step:,}", readable_bytes(one.size_bytes), files, marks


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {printable(name)}" for name, count in counts.items()) or "none"
