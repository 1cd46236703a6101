"""``fromscratch fit``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.options import (
    Checkpointing,
    CompileChoice,
    DeviceOption,
    JsonFlag,
    Overrides,
    Processes,
    QuietFlag,
)
from fromscratch.cli.output import note, print_json, print_table
from fromscratch.errors import FromScratchError

if TYPE_CHECKING:
    from fromscratch.planning.fit import Fit

Budget = Annotated[
    float | None,
    typer.Option("--memory", min=0.01, metavar="GIB", help="Memory to use; by default most of the free memory."),
]


def fit(
    runfile: Annotated[Path, typer.Argument(metavar="RUNFILE", help="The run file (TOML).")],
    overrides: Overrides = None,
    processes: Processes = None,
    memory_gib: Budget = None,
    compile_model: CompileChoice = None,
    activation_checkpointing: Checkpointing = False,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Find the largest micro-batch that fits this machine's memory, and the fastest one.

    The result is cached, and train uses it from then on. It changes the speed, not the training result.

    Example: fromscratch fit baseline.toml
    """
    from fromscratch.machine.acceleration import choose_acceleration
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.planning.bench import Workload
    from fromscratch.planning.fit import DoesNotFitError
    from fromscratch.planning.fit_cache import find_and_cache_fit
    from fromscratch.planning.sharding import advice_to_divide
    from fromscratch.session.placement import local_batch_of
    from fromscratch.session.plan import plan_run

    plan = plan_run(runfile, overrides)
    hardware = find_hardware(device, processes_here=processes or 1)
    workload = Workload.of(plan.config)
    acceleration, _ = choose_acceleration(
        hardware.device,
        precision=workload.train.precision,
        compile_wanted=compile_model,
        activation_checkpointing=activation_checkpointing,
    )
    local_batch = local_batch_of(workload.train.global_batch, processes or 1)
    try:
        result = find_and_cache_fit(
            workload,
            hardware,
            acceleration,
            local_batch=local_batch,
            on_probe=lambda probe: note(probe.describe(), quiet=quiet),
            budget_bytes=round(memory_gib * 2**30) if memory_gib else None,
        )
    except DoesNotFitError as error:
        advice = advice_to_divide(workload, hardware, processes=processes or 1)
        raise FromScratchError(f"{error}{advice}") from None
    report(result, hardware.name, local_batch, as_json=as_json)


def report(result: "Fit", device_name: str, local_batch: int, *, as_json: bool) -> None:
    """Prints the result as a table or JSON."""
    if as_json:
        print_json({"device_name": device_name, **asdict(result)})
        return
    passes = -(-local_batch // result.fastest)
    line = result.line
    print_table(
        [
            ("largest micro-batch that fits", result.largest),
            ("fastest micro-batch", f"{result.fastest:,}, at {result.tokens_per_second:,.0f} tokens/s"),
            ("micro-batches per step and process", f"{passes:,} of at most {result.fastest:,} sequences"),
            ("memory, fixed", f"{line.fixed_bytes / 2**20:,.0f} MiB"),
            ("memory, per sequence", f"{line.bytes_per_sequence / 2**20:,.2f} MiB"),
            ("memory budget", f"{result.budget_bytes / 2**20:,.0f} MiB"),
        ]
    )
