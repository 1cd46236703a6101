"""``fromscratch bench``."""

from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, Overrides, PictureOption, Processes, QuietFlag
from fromscratch.cli.output import note, print_json

if TYPE_CHECKING:
    from fromscratch.machine.hardware import Hardware
    from fromscratch.planning.bench import Case, Row, Workload
    from fromscratch.session.plan import PlannedRun

GPT2_VOCABULARY = 50_257
OptionalRunFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUNFILE]", help="The run file (TOML) of the model; by default GPT-2 small, or a small model on a CPU."
    ),
]
CompileChoice = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Measure only with or only without torch.compile.")
]
Reference = Annotated[bool, typer.Option("--reference", help="Also measure the reference recipe, for comparison.")]
Numbers = Annotated[
    list[int] | None, typer.Option("--micro-batch", min=1, help="Sequences per forward pass; repeatable.")
]
Names = Annotated[list[str] | None, typer.Option("--precision", help="fp32, tf32, bf16 or fp16; repeatable.")]


def bench(
    runfile: OptionalRunFile = None,
    overrides: Overrides = None,
    processes: Processes = None,
    micro_batches: Numbers = None,
    precisions: Names = None,
    compiled: CompileChoice = None,
    reference: Reference = False,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps per measurement, after two warm-up steps.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all cases are measured in turn.")] = 1,
    picture: PictureOption = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure training speed: tokens/s, MFU and memory by micro-batch, precision and compilation.

    Example: fromscratch bench baseline.toml --reference --picture speed.png
    """
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.machine.memory import default_micro_batch
    from fromscratch.machine.precision import check_precision
    from fromscratch.planning.bench import (
        default_micro_batches,
        measure,
        reference_cases,
        summarise,
    )
    from fromscratch.planning.bench_chart import draw_speed
    from fromscratch.planning.peak_flops import PeakFlops
    from fromscratch.session.placement import local_batch_of

    for name in precisions or []:
        check_precision(name)
    hardware = find_hardware(device, processes_here=processes or 1)
    workload, plan = workload_of(runfile, overrides, kind := hardware.device.type)
    local_batch = local_batch_of(workload.train.global_batch, processes or 1)
    max_size = default_micro_batch(hardware.device, workload.model.context_length)
    sizes = micro_batches or default_micro_batches(local_batch, max_size)
    cases = choose_cases(hardware, workload, sizes, precisions, compiled, is_default=not micro_batches)
    if reference:
        cases += reference_cases(workload.model, hardware, dict.fromkeys(case.micro_batch for case in cases))
    peak, on_progress = PeakFlops(hardware), partial(note, quiet=quiet)
    measured = measure(workload, cases, hardware, steps=steps, rounds=rounds, peak=peak, on_progress=on_progress)
    rows = [summarise(measurement, workload, peak) for measurement in measured]
    keep_speeds(workload, hardware, rows)
    conditions = {
        **hardware.to_dict(),
        "parameters": workload.parameters,
        "context_length": workload.model.context_length,
        "peak_flops": {precision: peak(precision) for precision in dict.fromkeys(row.precision for row in rows)},
        "predicted_hours": predicted_hours(plan, rows, devices=(processes or 1) if kind == "cuda" else 1),
    }
    if picture is not None:
        draw_speed(picture, rows, f"{workload.parameters:,} parameters on {hardware.name}")
    report(rows, conditions, as_json=as_json)


def choose_cases(
    hardware: "Hardware",
    workload: "Workload",
    sizes: list[int],
    precisions: list[str] | None,
    compiled: bool | None,
    *,
    is_default: bool,
) -> "list[Case]":
    """Returns what is measured: what the user asked for in every combination, or on a GPU few cases."""
    from fromscratch.machine.acceleration import compile_problem
    from fromscratch.planning.bench import cases_for, gpu_cases

    wanted = precisions or list(dict.fromkeys([workload.train.precision, "fp32"]))
    is_gpu = hardware.device.type == "cuda"
    can_compile = is_gpu and not compile_problem(hardware.device, wanted[0])
    if is_gpu and is_default and precisions is None and compiled is None:
        return gpu_cases(micro_batches=sizes, precision=wanted[0], can_compile=can_compile)
    modes = ([False, True] if can_compile else [False]) if compiled is None else [compiled]
    return cases_for(micro_batches=sizes, precisions=wanted, compiled=modes)


def workload_of(
    runfile: Path | None, overrides: list[str] | None, device_type: str
) -> "tuple[Workload, PlannedRun | None]":
    """Returns what is measured, and the planned run where the file's store is there.

    A store is not needed: without it, the vocabulary is GPT-2's unless the file says otherwise.
    """
    from fromscratch.config.loading import load_run_file
    from fromscratch.errors import DataError, FromScratchError, UsageError
    from fromscratch.formats.stores import open_named_store
    from fromscratch.planning.bench import Workload
    from fromscratch.session.plan import plan_run

    if runfile is None:
        if overrides:
            raise UsageError("--set: changes a key of a run file; name the run file")
        return default_workload(device_type), None
    run_file = load_run_file(runfile, overrides)
    config, vocab_size = run_file.config, GPT2_VOCABULARY
    config.check_is_pretraining(str(runfile))
    try:
        vocab_size = open_named_store(config.data.store, run_file.folders["data.store"]).vocab_size
    except FromScratchError as error:  # no such store, here or on the Hub, or the Hub cannot be reached
        problem = str(error)
    else:
        try:
            plan = plan_run(runfile, overrides)
            return Workload.of(plan.config), plan
        except DataError as error:  # for example too few tokens
            problem = str(error)
    vocab_size = config.model.vocab_size or vocab_size
    note(f"notice: {problem}; measuring with a vocabulary of {vocab_size:,} ids")
    return replace(Workload.of(config), model=config.model.model_copy(update={"vocab_size": vocab_size})), None


def default_workload(device_type: str) -> Any:
    """Returns GPT-2 small on a GPU, and a model that takes a few seconds elsewhere."""
    from fromscratch.config.model import GPTConfig
    from fromscratch.config.train import TrainConfig
    from fromscratch.planning.bench import Workload

    preset, vocab_size = ("gpt2-small", GPT2_VOCABULARY) if device_type == "cuda" else ("laptop-small", 2_048)
    return Workload(GPTConfig.model_validate({"preset": preset, "vocab_size": vocab_size}), TrainConfig())


def keep_speeds(workload: "Workload", hardware: "Hardware", rows: "list[Row]") -> None:
    """Keeps the speeds for ``fromscratch plan``; says so if the data folder is not writable."""
    from fromscratch.planning.speeds import record_speed, speeds_file

    try:
        record_speed(workload, hardware, rows, date=date.today().isoformat())
    except OSError as error:
        note(f"notice: the speeds are not kept for 'fromscratch plan': {speeds_file()}: {error.strerror}")


def predicted_hours(plan: "PlannedRun | None", rows: "list[Row]", *, devices: int) -> float | None:
    """Predicts the hours of the planned run from the fastest row of its precision; None if there is none.

    Args:
        devices: number of GPUs that train together. Processes on a CPU share the cores that one process was measured
            with, so they count as one.
    """
    from fromscratch.planning.bench import fastest

    best = fastest(rows, plan.config.train.precision) if plan else None
    if plan is None or best is None or not best.tokens_per_second:
        return None
    return plan.tokens_before(plan.num_steps) / (devices * best.tokens_per_second) / 3600


def report(rows: "list[Row]", conditions: dict[str, Any], *, as_json: bool) -> None:
    """Prints the table, or conditions and rows as JSON."""
    from dataclasses import asdict

    if as_json:
        print_json({**conditions, "rows": [asdict(row) for row in rows]})
        return
    print("{parameters:,} parameters, context {context_length}, on {device_name}".format(**conditions))
    header = ("recipe", "precision", "mode", "micro-batch", "tokens/s", "MFU", "memory MiB", "step ms p10/p50/p90")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    hours = conditions["predicted_hours"]
    if hours is not None:
        print(
            f"predicted time of this run: {hours:,.2f} hours, at the fastest row of its precision, without evaluations "
            "and communication"
        )


def _cells(row: "Row") -> tuple[str, ...]:
    mode = "compiled" if row.compile else "eager"
    names = (row.recipe, row.precision, mode, str(row.micro_batch))
    if row.tokens_per_second is None:
        return (*names, row.error or "unknown", "", "", "")
    mfu = "unknown" if row.mfu is None else f"{row.mfu:.1%}"
    times = (row.step_seconds_p10, row.step_seconds_p50, row.step_seconds_p90)
    return (
        *names,
        f"{row.tokens_per_second:,.0f}",
        mfu,
        f"{(row.peak_memory_bytes or 0) / 2**20:,.0f}",
        " / ".join(f"{(seconds or 0) * 1e3:,.1f}" for seconds in times),
    )
