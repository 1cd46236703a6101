"""``fromscratch train``."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.output import DeviceOption, JsonFlag, QuietFlag, note, print_json, print_table
from fromscratch.errors import EXIT_DONE, EXIT_STOPPED, FromScratchError

if TYPE_CHECKING:
    from fromscratch.session.placement import MachineOptions, Placement
    from fromscratch.session.plan import PlannedRun
    from fromscratch.session.run import RunSummary
    from fromscratch.training.observers import Observer


Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the run file; repeatable.")
]
MicroBatch = Annotated[
    int | None, typer.Option(min=1, help="Sequences per forward pass; changes the speed, not the result.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine, one per device; changes only the speed.")
]
CompileChoice = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile; by default where it pays.")
]
Checkpointing = Annotated[
    bool, typer.Option("--activation-checkpointing", help="Less memory, a third more work; the same result.")
]
AllowedChanges = Annotated[
    list[str] | None,
    typer.Option("--allow-change", metavar="KEY", help="Go on with another value of a key; repeatable."),
]
ProfiledSteps = Annotated[
    int | None, typer.Option(min=1, metavar="STEPS", help="Write a Chrome trace of so many steps into the run.")
]


LEAST_FLOPS_FOR_A_SEARCH = 1e17  # about five minutes of a fast GPU; a search takes a few


def train(
    runfile: Annotated[Path, typer.Argument(metavar="RUNFILE", help="The run file (TOML).")],
    name: Annotated[str | None, typer.Option(help="Name of the run; by default the file's name.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    overrides: Overrides = None,
    micro_batch: MicroBatch = None,
    device: DeviceOption = None,
    processes: Processes = None,
    compile_model: CompileChoice = None,
    activation_checkpointing: Checkpointing = False,
    profile: ProfiledSteps = None,
    stop_after: Annotated[int | None, typer.Option(min=1, help="Stop, resumable, after this step.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; an older run is set aside.")] = False,
    allow_change: AllowedChanges = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Train a model, or go on where training stopped.

    Ctrl-C finishes the step, saves, and exits with code 75; the same command goes on.

    Example: fromscratch train baseline.toml --set train.seed=7 --name baseline-7
    """
    from fromscratch.processes.launcher import is_launched, launch
    from fromscratch.processes.restarts import may_restart
    from fromscratch.processes.world import started_rank
    from fromscratch.runs.directory import RunDirectory, check_run_name
    from fromscratch.session.placement import MachineOptions
    from fromscratch.session.plan import plan_run
    from fromscratch.session.run import run_training

    path = runs_dir / check_run_name(runfile.stem if name is None else name)
    plan = plan_run(runfile, overrides)
    machine = MachineOptions(
        device=device,
        micro_batch=micro_batch,
        compile=compile_model,
        activation_checkpointing=activation_checkpointing,
    )
    launches = processes is not None and processes > 1 and not is_launched()
    placement = placed(plan, path, machine, world_size=processes if launches else None, fresh=fresh, quiet=quiet)
    if launches:  # bad input was told once, above
        raise typer.Exit(launch(sys.argv[1:], RunDirectory(path), processes=placement.world_size))
    speaks = started_rank() == 0
    if speaks:
        introduce(plan, placement, path, fresh=fresh, quiet=quiet)
    summary = run_training(
        plan,
        path,
        placement,
        observers=watching(path, profile, quiet=quiet),
        fresh=fresh,
        stop_after=stop_after,
        allowed_changes=allow_change or (),
    )
    if speaks:
        report(summary, as_json=as_json)
    if summary.outcome != "done":
        note(f"stopped at step {summary.step} of {summary.num_steps}; the same command goes on", quiet=not speaks)
        raise typer.Exit(EXIT_DONE if is_launched() or may_restart() else EXIT_STOPPED)


def watching(path: Path, profiled_steps: int | None, *, quiet: bool) -> "list[Observer]":
    """Who is told what happens: the terminal, and the profiler where one was asked for."""
    from fromscratch.training.observers import terminal_observer
    from fromscratch.training.profiling import TRACE_FILE, StepProfiler

    observers: list[Observer] = [] if quiet else [terminal_observer()]
    if profiled_steps is not None:
        observers.append(StepProfiler(path / TRACE_FILE, profiled_steps))
    return observers


def placed(
    plan: "PlannedRun", path: Path, machine: "MachineOptions", *, world_size: int | None, fresh: bool, quiet: bool
) -> "Placement":
    """The machine's choices; on a GPU, after a search for the fastest micro-batch where it is worth one."""
    from fromscratch.runs.directory import RunDirectory
    from fromscratch.session.placement import place_run

    place = partial(place_run, plan, RunDirectory(path), machine, world_size=world_size, fresh=fresh)
    placement = place()
    if worth_a_search(plan, placement):
        search(plan, placement, quiet=quiet)
        placement = place()
    return placement


def introduce(plan: "PlannedRun", placement: "Placement", path: Path, *, fresh: bool, quiet: bool) -> None:
    """Says what is about to happen, and what it will need on the disk. Raises UsageError where that is too much."""
    from fromscratch.data.verify import one_token_warnings
    from fromscratch.session.disk import plan_disk

    if path.is_symlink():
        note(f"notice: {path} is a link to {path.resolve()}")
    note(describe(plan, placement, path), quiet=quiet)
    warnings = [*one_token_warnings(plan.sequences.split), *filter(None, [placement.threads.notice])]
    for warning in warnings:
        note(f"notice: {warning}")
    note(plan_disk(plan, path, fresh=fresh).describe(), quiet=quiet)


def worth_a_search(plan: "PlannedRun", placement: "Placement") -> bool:
    """Whether to look for the fastest micro-batch first: on a GPU, once, for a run of more than a few minutes."""
    from fromscratch.processes.world import started_world_size

    on_gpu = placement.hardware.device.type == "cuda"
    flops = plan.num_steps * plan.sequences.tokens_per_step * plan.costs.training_flops_per_token
    return placement.is_guess and on_gpu and started_world_size() == 1 and flops > LEAST_FLOPS_FOR_A_SEARCH


def search(plan: "PlannedRun", placement: "Placement", *, quiet: bool) -> None:
    """Finds and remembers it; where that fails, training begins with a safe one."""
    from fromscratch.cli.fit import describe as describe_probe
    from fromscratch.planning.bench import Workload
    from fromscratch.planning.remembered_fits import find_and_remember

    note("looking for the fastest micro-batch, once per machine and model; --micro-batch N does without", quiet=quiet)
    try:
        find_and_remember(
            Workload(plan.config.model, plan.config.train),
            placement.hardware,
            placement.acceleration,
            share=-(-plan.config.train.global_batch // placement.world_size),
            tell=lambda probe: note(describe_probe(probe), quiet=quiet),
        )
    except (FromScratchError, OSError) as error:
        note(f"not found ({error}); going on with micro-batch {placement.micro_batch}", quiet=quiet)


def describe(plan: "PlannedRun", placement: "Placement", path: Path) -> str:
    """What is about to happen, in two lines."""
    from fromscratch.machine.emulation import needs_emulation

    train_config, tokens_per_step = plan.config.train, plan.sequences.tokens_per_step
    passes = placement.num_micro_batches(train_config.global_batch)
    processes = f"{placement.world_size} processes, " if placement.world_size > 1 else ""
    is_emulated = needs_emulation(train_config.precision, placement.hardware.device)
    emulated = " (computed in fp32: this processor has no such instructions)" if is_emulated else ""
    return (
        f"{path}: {plan.costs.parameters:,} parameters, {plan.num_steps:,} steps of {tokens_per_step:,} tokens "
        f"({plan.num_steps * tokens_per_step:,} in all)\n"
        f"on {placement.hardware.device} ({placement.hardware.name}), {train_config.precision}{emulated}, global batch "
        f"{train_config.global_batch} as {processes}{passes} x {placement.micro_batch}, "
        f"{placement.acceleration}{f' ({placement.why_not_compiled})' if placement.why_not_compiled else ''}"
    )


def report(summary: "RunSummary", *, as_json: bool) -> None:
    """The table at the end of a run."""
    if as_json:
        print_json(asdict(summary))
        return
    best = f"{summary.best_loss:.4f} at step {summary.best_step:,}" if summary.best_loss is not None else None
    best_name = "best held-out loss" if summary.best_is_held_out else "best mean training loss"
    print_table(
        [
            ("run", summary.run),
            ("outcome", f"{summary.outcome}, step {summary.step:,} of {summary.num_steps:,}"),
            ("parameters", summary.parameters),
            ("tokens", summary.tokens),
            ("training time", f"{summary.seconds:,.1f} s"),
            ("tokens per second", summary.tokens_per_second and round(summary.tokens_per_second)),
            ("MFU", summary.mfu and f"{summary.mfu:.1%}"),
            ("peak memory", f"{summary.peak_memory_bytes / 2**20:,.0f} MiB"),
            ("final training loss", summary.final_loss),
            (best_name, best),
            ("steps", ", ".join(f"{count:,} {outcome}" for outcome, count in summary.outcomes.items())),
        ]
    )
