"""``fromscratch bench``."""

from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, QuietFlag
from fromscratch.cli.output import note, print_json

if TYPE_CHECKING:
    from fromscratch.machine.hardware import Hardware
    from fromscratch.planning.bench import Row, Workload
    from fromscratch.session.plan import PlannedRun

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
    micro_batches: Numbers = None,
    precisions: Names = None,
    compiled: CompileChoice = None,
    reference: Reference = False,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps per measurement, after two warm-up steps.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all cases are measured in turn.")] = 1,
    picture: Annotated[Path | None, typer.Option(help="Write a chart of the table (PNG).")] = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure training speed: tokens/s, MFU and memory by micro-batch, precision and compilation.

    Example: fromscratch bench baseline.toml --reference --picture speed.png
    """
    from fromscratch.machine.acceleration import compile_problem
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.machine.memory import default_micro_batch
    from fromscratch.machine.precision import check_precision
    from fromscratch.planning.bench import (
        PeakFlops,
        Workload,
        cases_for,
        default_micro_batches,
        measure,
        reference_cases,
        summarise,
    )
    from fromscratch.planning.bench_chart import draw_speed
    from fromscratch.session.plan import plan_run

    for name in precisions or []:
        check_precision(name)
    hardware = find_hardware(device)
    kind = hardware.device.type
    plan = plan_run(runfile) if runfile is not None else None
    workload = Workload(plan.config.model, plan.config.train) if plan else default_workload(kind)
    max_size = default_micro_batch(hardware.device, workload.model.context_length)
    sizes = micro_batches or default_micro_batches(workload.train.global_batch, max_size)
    wanted = precisions or list(dict.fromkeys([workload.train.precision, "fp32"]))
    both = [False, True] if kind == "cuda" and not compile_problem(hardware.device, wanted[0]) else [False]
    cases = cases_for(micro_batches=sizes, precisions=wanted, compiled=both if compiled is None else [compiled])
    if reference:
        cases += reference_cases(hardware, sizes)
    peak, on_progress = PeakFlops(hardware), partial(note, quiet=quiet)
    measured = measure(workload, cases, hardware, steps=steps, rounds=rounds, peak=peak, on_progress=on_progress)
    rows = [summarise(measurement, workload, peak) for measurement in measured]
    keep_speeds(workload, hardware, rows)
    conditions = {
        **hardware.to_dict(),
        "parameters": workload.parameters,
        "context_length": workload.model.context_length,
        "peak_flops": {precision: peak(precision) for precision in dict.fromkeys(row.precision for row in rows)},
        "predicted_hours": predicted_hours(plan, rows),
    }
    if picture is not None:
        draw_speed(picture, rows, f"{workload.parameters:,} parameters on {hardware.name}")
    report(rows, conditions, as_json=as_json)


def default_workload(device_type: str) -> Any:
    """Returns GPT-2 small on a GPU, and a model that takes a few seconds elsewhere."""
    from fromscratch.config.model import GPTConfig
    from fromscratch.config.train import TrainConfig
    from fromscratch.planning.bench import Workload

    preset, vocab_size = ("gpt2-small", 50_257) if device_type == "cuda" else ("laptop-small", 2_048)
    return Workload(GPTConfig.model_validate({"preset": preset, "vocab_size": vocab_size}), TrainConfig())


def keep_speeds(workload: "Workload", hardware: "Hardware", rows: "list[Row]") -> None:
    """Keeps the speeds for ``fromscratch plan``; says so if the data folder is not writable."""
    from fromscratch.planning.speeds import record_speed, speeds_file

    try:
        record_speed(workload, hardware, rows, date=date.today().isoformat())
    except OSError as error:
        note(f"notice: the speeds are not kept for 'fromscratch plan': {speeds_file()}: {error.strerror}")


def predicted_hours(plan: "PlannedRun | None", rows: "list[Row]") -> float | None:
    """Predicts the hours of the planned run from the fastest row of its precision; None if there is none."""
    from fromscratch.planning.bench import fastest

    best = fastest(rows, plan.config.train.precision) if plan else None
    if plan is None or best is None or not best.tokens_per_second:
        return None
    return plan.num_steps * plan.objective.tokens_per_step / best.tokens_per_second / 3600


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
            f"predicted time of this run: {hours:,.2f} hours, at the fastest row of its precision, without evaluations"
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
