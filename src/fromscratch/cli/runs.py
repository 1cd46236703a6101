"""``fromscratch runs``: shows and verifies runs; ``run_lists`` lists and ``run_removal`` removes them."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fromscratch.cli.options import JsonFlag, RunsDir
from fromscratch.cli.output import local_time, note, print_columns, print_json, print_table, printable, show
from fromscratch.cli.run_arguments import RunArgument, SomeRuns, resolve, resolve_all
from fromscratch.cli.run_lists import cells_of, list_runs
from fromscratch.cli.run_removal import clean, remove
from fromscratch.errors import EXIT_DATA
from fromscratch.files import readable_bytes

if TYPE_CHECKING:
    from fromscratch.runs.details import CheckpointInfo, Details
    from fromscratch.runs.directory import RunDirectory

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, inspect, verify, clean and remove runs.")
app.command(name="list")(list_runs)


@app.command(name="show")
def show_run(run: RunArgument, runs_dir: RunsDir = Path("runs"), as_json: JsonFlag = False) -> None:
    """Show one run: state, config by steps, machine, checkpoints, evaluations, events, steps by outcome.

    Only the sizes of checkpoint files are checked; 'fromscratch runs verify' reads every byte.

    Example: fromscratch runs show baseline
    """
    from fromscratch.runs.details import details_of

    directory = resolve(run, runs_dir)
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
        for run in resolve_all(runs, runs_dir)
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


app.command()(clean)
app.command(name="rm")(remove)


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


def _best_measure(run: "RunDirectory") -> str | None:
    """The tokens that the best loss was measured on; None if the config cannot be read."""
    from fromscratch.config.loading import run_config_or_none

    config = run_config_or_none(run.config)
    return None if config is None else config.best_measure


def _print_details(
    details: "Details", best_measure: str | None, config: dict[str, Any], sessions: list[dict[str, Any]]
) -> None:
    one = details.overview
    cells = cells_of(one)
    print_table(
        [
            ("run", printable(one.path)),
            ("state", f"{one.state} ({printable(one.reason)})" if one.reason else one.state),
            ("step", "{step}, {done}".format(**cells)),
            ("training loss", cells["loss"]),
            ("best loss", f"{cells['best']} ({show(best_measure)})"),
            ("size", cells["size"]),
            ("started", local_time(one.began_at)),
            ("updated", cells["updated"]),
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
