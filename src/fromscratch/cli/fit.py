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

if TYPE_CHECKING:
    from fromscratch.planning.fit import Fit

Budget = Annotated[
    float | None, typer.Option("--memory", min=0.01, metavar="GIB", help="Memory that may be used; by default, free.")
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
    """The largest micro-batch that fits this machine's memory, and the fastest one.

    The answer is remembered, and train uses it from then on; it changes the speed, never the result.

    Example: fromscratch fit baseline.toml
    """
    from fromscratch.machine.acceleration import choose_acceleration
    from fromscratch.machine.hardware import find_hardware
    from fromscratch.planning.bench import Workload
    from fromscratch.planning.remembered_fits import find_and_remember
    from fromscratch.processes.world import max_local_shard
    from fromscratch.session.plan import plan_run

    plan = plan_run(runfile, overrides)
    hardware = find_hardware(device)
    workload = Workload(plan.config.model, plan.config.train)
    acceleration, _ = choose_acceleration(
        hardware.device,
        precision=workload.train.precision,
        compile_wanted=compile_model,
        activation_checkpointing=activation_checkpointing,
    )
    share = max_local_shard(workload.train.global_batch, processes or 1)
    found = find_and_remember(
        workload,
        hardware,
        acceleration,
        share=share,
        tell=lambda probe: note(probe.describe(), quiet=quiet),
        budget_bytes=round(memory_gib * 2**30) if memory_gib else None,
    )
    report(found, hardware.name, share, as_json=as_json)


def report(found: "Fit", device_name: str, share: int, *, as_json: bool) -> None:
    """What was found, as a table or JSON."""
    if as_json:
        print_json({"device_name": device_name, **asdict(found)})
        return
    passes = -(-share // found.fastest)
    line = found.line
    print_table(
        [
            ("largest micro-batch that fits", found.largest),
            ("fastest", f"{found.fastest:,}, at {found.tokens_per_second:,.0f} tokens/s"),
            ("passes per step and process", f"{passes:,} of at most {found.fastest:,} sequences"),
            ("memory, fixed", f"{line.fixed_bytes / 2**20:,.0f} MiB"),
            ("memory, per sequence", f"{line.bytes_per_sequence / 2**20:,.2f} MiB"),
            ("memory that may be used", f"{found.budget_bytes / 2**20:,.0f} MiB"),
        ]
    )
