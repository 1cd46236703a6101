"""``fromscratch train``."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import (
    AllowedChanges,
    Checkpointing,
    CompileChoice,
    Deterministic,
    DeviceOption,
    Fresh,
    JsonFlag,
    MicroBatch,
    Overrides,
    PricePerHour,
    Processes,
    QuietFlag,
    RunsDir,
    ShardChoice,
    StopAfter,
)
from fromscratch.cli.output import note, print_json, print_table
from fromscratch.cli.task_measures import measure_task
from fromscratch.errors import EXIT_CRASH, EXIT_DONE, EXIT_STOPPED

ALREADY_FINISHED = "is finished, all {num_steps:,} steps were taken before; no step was taken now. --fresh starts again"
ALREADY_STOPPED_EARLY = (
    "is finished, its held-out loss had stopped falling; no step was taken now. --fresh starts again"
)

if TYPE_CHECKING:
    from fromscratch.session.billing import Billing
    from fromscratch.session.placement import MachineOptions, Placement
    from fromscratch.session.plan import PlannedRun
    from fromscratch.session.run import RunSummary
    from fromscratch.training.observers import Observer


ProfiledSteps = Annotated[
    int | None, typer.Option(min=1, metavar="STEPS", help="Write a Chrome trace of this number of steps into the run.")
]


def train(
    runfile: Annotated[Path, typer.Argument(metavar="RUNFILE", help="The run file (TOML).")],
    name: Annotated[str | None, typer.Option(help="Name of the run; by default the file's name.")] = None,
    runs_dir: RunsDir = Path("runs"),
    overrides: Overrides = None,
    micro_batch: MicroBatch = None,
    device: DeviceOption = None,
    processes: Processes = None,
    compile_model: CompileChoice = None,
    activation_checkpointing: Checkpointing = False,
    deterministic: Deterministic = None,
    shard: ShardChoice = "auto",
    profile: ProfiledSteps = None,
    stop_after: StopAfter = None,
    fresh: Fresh = False,
    allow_change: AllowedChanges = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    dollars_per_hour: PricePerHour = None,
) -> None:
    """Train a model, or continue a stopped run.

    Ctrl-C finishes the step, saves, and exits with code 75; the same command continues. A second Ctrl-C ends the
    command at once with code 130; a resume begins at the last checkpoint.

    Example: fromscratch train baseline.toml --set train.seed=7 --name baseline-7
    """
    from fromscratch.planning.sharding import Sharding
    from fromscratch.runs.directory import check_run_name
    from fromscratch.session.billing import Billing
    from fromscratch.session.placement import MachineOptions
    from fromscratch.session.plan import plan_run

    billing = Billing(dollars_per_hour)
    path = runs_dir / check_run_name(runfile.stem if name is None else name)
    plan = plan_run(runfile, overrides)
    wish = Sharding(shard)
    machine = MachineOptions(device, micro_batch, compile_model, activation_checkpointing, deterministic, wish)
    options = SessionOptions(processes, profile, stop_after, fresh, allow_change or (), as_json, quiet)
    train_plan(plan, path, machine, options, billing)


@dataclass(frozen=True)
class SessionOptions:
    """The options of a command that trains, which change neither the science nor the machine."""

    processes: int | None = None
    profile: int | None = None
    stop_after: int | None = None
    fresh: bool = False
    allow_change: Sequence[str] = ()
    as_json: bool = False
    quiet: bool = False


def train_plan(
    plan: "PlannedRun",
    path: Path,
    machine: "MachineOptions",
    options: SessionOptions,
    billing: "Billing",
) -> None:
    """Trains a planned run, in several processes if wanted; prints the result and exits with its code."""
    from fromscratch.processes.launcher import is_launched, launch
    from fromscratch.processes.world import started_rank
    from fromscratch.runs.directory import RunDirectory
    from fromscratch.session.placement import place_run
    from fromscratch.session.run import run_training

    processes, fresh, quiet = options.processes, options.fresh, options.quiet
    launches = processes is not None and processes > 1 and not is_launched()
    world_size, on_progress = processes if launches else None, partial(note, quiet=quiet)
    placement = place_run(
        plan, RunDirectory(path), machine, world_size=world_size, fresh=fresh, on_progress=on_progress
    )
    if launches:  # plan_run and place_run have checked the input
        raise typer.Exit(launch(sys.argv[1:], RunDirectory(path), processes=placement.world_size))
    if is_main := started_rank() == 0:
        introduce(plan, placement, path, fresh=fresh, quiet=quiet)
    summary = run_training(
        plan,
        path,
        placement,
        observers=make_observers(plan, path, options.profile, quiet=quiet),
        fresh=fresh,
        stop_after=options.stop_after,
        allowed_changes=options.allow_change,
        billing=billing,
    )
    if is_main:
        is_over = summary.outcome == "done"
        further = measure_task(plan, path, machine.device, as_json=options.as_json) if is_over else {}
        report(summary, as_json=options.as_json, further=further)
    end_command(summary, path, options.stop_after, is_main=is_main, quiet=quiet)


def end_command(summary: "RunSummary", path: Path, stop_after: int | None, *, is_main: bool, quiet: bool) -> None:
    """Says what a session without steps or a stopped one means, and exits with its code."""
    from fromscratch.processes.launcher import is_launched
    from fromscratch.processes.parent import PARENT
    from fromscratch.processes.restarts import may_restart

    if summary.outcome == "done":
        if summary.first_step == summary.step:
            already = ALREADY_FINISHED if summary.step == summary.num_steps else ALREADY_STOPPED_EARLY
            note(f"{path}: {already.format(num_steps=summary.num_steps)}", quiet=quiet or not is_main)
        return
    note(describe_stop(summary, stop_after), quiet=not is_main)
    if PARENT.is_lost():
        raise typer.Exit(EXIT_CRASH)
    raise typer.Exit(EXIT_DONE if is_launched() or may_restart() else EXIT_STOPPED)


def describe_stop(summary: "RunSummary", stop_after: int | None) -> str:
    """Says where a run stopped and how to continue it."""
    where = f"stopped at step {summary.step:,} of {summary.num_steps:,}"
    if stop_after is None or summary.step < stop_after:
        return f"{where}; the same command continues"
    taken = ", no step was taken" if summary.first_step == summary.step else ""
    return f"{where} because of --stop-after {stop_after}{taken}; to continue, leave it out or give a higher step"


def make_observers(plan: "PlannedRun", path: Path, profiled_steps: int | None, *, quiet: bool) -> "list[Observer]":
    """Returns the observers: terminal output unless ``quiet``, other tools, and the profiler if requested."""
    from fromscratch.runs.directory import RunDirectory
    from fromscratch.session.reporting import session_observers
    from fromscratch.training.observers import terminal_observer

    observers: list[Observer] = [] if quiet else [terminal_observer(plan.tokens_before(plan.num_steps))]
    warn: Callable[[str], None] = lambda text: note(f"notice: {text}")  # noqa: E731
    return observers + session_observers(plan.config.train.report_to, RunDirectory(path), profiled_steps, warn)


def introduce(plan: "PlannedRun", placement: "Placement", path: Path, *, fresh: bool, quiet: bool) -> None:
    """Prints the planned run, notices and the disk plan. Raises UsageError if the disk is too full."""
    from fromscratch.session.disk import plan_disk

    if path.is_symlink():
        note(f"notice: {path} is a link to {path.resolve()}")
    note(describe(plan, placement, path), quiet=quiet)
    for notice in filter(None, [*plan.notices, *plan.objective.notices(), placement.threads.notice]):
        note(f"notice: {notice}")
    note(plan_disk(plan, path, fresh=fresh).describe(), quiet=quiet)


def describe(plan: "PlannedRun", placement: "Placement", path: Path) -> str:
    """Returns the planned run as two lines: model and steps, then machine and micro-batches."""
    from fromscratch.machine.attention import describe_attention
    from fromscratch.machine.emulation import needs_emulation

    train_config, tokens_per_step = plan.config.train, plan.objective.tokens_per_step
    step = train_config.untie_step(plan.num_steps)
    untied = f" ({plan.parameters_at(plan.num_steps):,} after step {step:,}, with a head of its own)" if step else ""
    ramp = f"{plan.tokens_before(1):,} to " if train_config.batch_ramp else ""
    passes = placement.num_micro_batches(train_config.global_batch)
    divided = " that divide the model" if placement.is_sharded else ""
    processes = f"{placement.world_size} processes{divided}, " if placement.world_size > 1 else ""
    is_emulated = needs_emulation(train_config.precision, placement.hardware.device)
    attention = describe_attention(plan.config, placement.hardware.device)
    emulated = " (computed in fp32: this processor has no 16-bit instructions)" if is_emulated else ""
    return (
        f"{path}: {plan.costs.parameters:,} parameters{untied}, {plan.num_steps:,} steps of {ramp}{tokens_per_step:,} "
        f"tokens ({plan.tokens_before(plan.num_steps):,} in total)\n"
        f"on {placement.hardware.device} ({placement.hardware.name}), {train_config.precision}{emulated}, global batch "
        f"{train_config.global_batch} as {processes}{passes} x {placement.micro_batch}, "
        f"{placement.acceleration}{f' ({placement.compile_problem})' if placement.compile_problem else ''}"
        f"{attention and f', {attention}'}"
    )


def report(summary: "RunSummary", *, as_json: bool, further: dict[str, Any]) -> None:
    """Prints the summary of a run, and further values, as a table or JSON."""
    if as_json:
        print_json(asdict(summary) | further)
        return
    best = None
    if summary.best_loss is not None:
        best = f"{summary.best_loss:.4f} at step {summary.best_step:,} ({summary.best_measure})"
    best_name = "best held-out loss" if summary.best_is_held_out else "best mean training loss"
    print_table(
        [
            ("run", summary.run),
            ("outcome", f"{summary.outcome}, step {summary.step:,} of {summary.num_steps:,}"),
            ("parameters", summary.parameters),
            ("tokens", summary.tokens),
            ("training time", f"{summary.seconds:,.1f} s"),
            ("tokens per second", summary.tokens_per_second and round(summary.tokens_per_second)),
            *([("MFU", f"{summary.mfu:.1%}")] if summary.mfu else []),
            ("peak memory", f"{summary.peak_memory_bytes / 2**20:,.0f} MiB"),
            ("final training loss", summary.final_loss),
            (best_name, best),
            ("steps", ", ".join(f"{count:,} {outcome}" for outcome, count in summary.outcomes.items())),
            *further.items(),
        ]
    )
