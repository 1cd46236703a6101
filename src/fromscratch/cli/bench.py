"""``fromscratch bench``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, QuietFlag
from fromscratch.cli.output import note, print_json

if TYPE_CHECKING:
    from fromscratch.planning.bench import Row
    from fromscratch.session.plan import PlannedRun

OptionalRunFile = Annotated[
    Path | None, typer.Argument(metavar="[RUNFILE]", help="Whose model; without one, one that suits the machine.")
]
CompileChoice = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Only with or without torch.compile.")
]
Reference = Annotated[bool, typer.Option("--reference", help="Measure the plain recipe too: what the engine gains.")]
Numbers = Annotated[list[int] | None, typer.Option("--micro-batch", min=1, help="Sequences at a time; repeatable.")]
Names = Annotated[list[str] | None, typer.Option("--precision", help="fp32, tf32, bf16 or fp16; repeatable.")]


def bench(
    runfile: OptionalRunFile = None,
    micro_batches: Numbers = None,
    precisions: Names = None,
    compiled: CompileChoice = None,
    reference: Reference = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps per measurement, after two to warm up.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all measurements take turns.")] = 1,
    picture: Annotated[Path | None, typer.Option(help="Write a picture (PNG) of the table.")] = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """How fast this machine trains: tokens/s, MFU and memory over micro-batch, precision and compile.

    Example: fromscratch bench baseline.toml --reference --picture speed.png
    """
    from fromscratch.machine.acceleration import why_not_compiled
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.machine.memory import default_micro_batch
    from fromscratch.planning.bench import (
        PeakFlops,
        Workload,
        cases_for,
        check_precisions,
        default_micro_batches,
        measure,
        reference_cases,
        summarise,
    )
    from fromscratch.planning.bench_chart import draw_speed
    from fromscratch.session.plan import plan_run

    check_precisions(precisions or [])
    hardware = find_hardware(device)
    kind = hardware.device.type
    plan = plan_run(runfile) if runfile is not None else None
    workload = Workload(plan.config.model, plan.config.train) if plan else usual_workload(kind)
    largest = default_micro_batch(hardware.device, workload.model.context_length)
    sizes = micro_batches or default_micro_batches(workload.train.global_batch, largest)
    wanted = precisions or list(dict.fromkeys([workload.train.precision, "fp32"]))
    both = [False, True] if kind == "cuda" and not why_not_compiled(hardware.device, wanted[0]) else [False]
    cases = cases_for(micro_batches=sizes, precisions=wanted, compiled=both if compiled is None else [compiled])
    if reference:
        cases += reference_cases(hardware, sizes)
    peak = PeakFlops(hardware)
    say = partial(note, quiet=quiet)
    found = measure(workload, cases, hardware, steps=steps, rounds=rounds, peak=peak, say=say)
    rows = [summarise(measurement, workload, peak) for measurement in found]
    facts = {
        **hardware.facts(),
        "parameters": workload.parameters,
        "context_length": workload.model.context_length,
        "peak_flops": {precision: peak(precision) for precision in dict.fromkeys(row.precision for row in rows)},
        "predicted_hours": predicted_hours(plan, rows),
    }
    if picture is not None:
        draw_speed(picture, rows, f"{facts['parameters']:,} parameters on {hardware.name}")
    report(rows, facts, as_json=as_json)


def usual_workload(device_type: str) -> Any:
    """GPT-2 small for a GPU; on other machines one that ends before the coffee is cold."""
    from fromscratch.config.model import GPTConfig
    from fromscratch.config.train import TrainConfig
    from fromscratch.planning.bench import Workload

    preset, vocab_size = ("gpt2-small", 50_257) if device_type == "cuda" else ("laptop-small", 2_048)
    return Workload(GPTConfig.model_validate({"preset": preset, "vocab_size": vocab_size}), TrainConfig())


def predicted_hours(plan: "PlannedRun | None", rows: "list[Row]") -> float | None:
    """How long the run file would take at its precision's fastest line; unknown without either."""
    from fromscratch.planning.bench import fastest

    best = fastest(rows, plan.config.train.precision) if plan else None
    if plan is None or best is None or not best.tokens_per_second:
        return None
    return plan.num_steps * plan.objective.tokens_per_step / best.tokens_per_second / 3600


def report(rows: "list[Row]", facts: dict[str, Any], *, as_json: bool) -> None:
    """The table, or all of it as JSON."""
    from dataclasses import asdict

    if as_json:
        print_json({**facts, "rows": [asdict(row) for row in rows]})
        return
    print(f"{facts['parameters']:,} parameters, context {facts['context_length']}, on {facts['device_name']}")
    header = ("recipe", "precision", "mode", "micro-batch", "tokens/s", "MFU", "memory MiB", "step ms p10/p50/p90")
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    hours = facts["predicted_hours"]
    if hours is not None:
        print(f"the run file at hand: {hours:,.2f} hours at its precision's fastest line, evaluations not counted")


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
