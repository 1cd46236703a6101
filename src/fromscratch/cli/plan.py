"""``fromscratch plan``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag, Overrides
from fromscratch.cli.output import note, print_columns, print_json, print_table
from fromscratch.files import readable_bytes

if TYPE_CHECKING:
    from fromscratch.planning.forecast import MachineForecast
    from fromscratch.session.estimate import Estimate, Science

MachineNames = Annotated[
    list[str] | None,
    typer.Option(
        "--machine", metavar="NAME", help="A machine of machines.toml, or 'here'; repeatable; all by default."
    ),
]
Mfu = Annotated[
    float,
    typer.Option(min=0.01, max=1.0, help="Share of a GPU's peak to assume where 'bench' has measured nothing."),
]


def plan(
    runfile: Annotated[Path, typer.Argument(metavar="RUNFILE", help="The run file (TOML).")],
    overrides: Overrides = None,
    machines: MachineNames = None,
    mfu: Mfu = 0.4,
    as_json: JsonFlag = False,
) -> None:
    """Say what a run will take before anything is spent: parameters, FLOPs, tokens, memory, disk, hours, dollars.

    The store need not exist yet. Speeds are those that 'fromscratch bench RUNFILE' has measured, else an assumed share
    of the GPU's peak. Your own machines and prices go into ~/.config/fromscratch/machines.toml.

    Example: fromscratch plan baseline.toml --machine 8xa100-40gb --machine home-rtx-3090
    """
    from fromscratch.session.estimate import estimate_run

    estimate = estimate_run(runfile, overrides, machines=machines, mfu=mfu)
    if as_json:
        print_json(to_dict(estimate))
        return
    if estimate.science.store_problem:
        assumed = f"; the vocabulary of {estimate.science.config.model.vocab_size:,} ids is assumed, GPT-2's"
        note(f"notice: {estimate.science.store_problem}{assumed if estimate.science.vocabulary_is_assumed else ''}")
    _print_science(estimate.science)
    _print_memory(estimate)
    _print_machines(estimate.machines)


def to_dict(estimate: "Estimate") -> dict[str, Any]:
    """Returns all figures, with the names that other commands use."""
    science, costs = estimate.science, estimate.science.costs
    return {
        "parameters": costs.parameters,
        "active_parameters": costs.active_parameters,
        "parameters_at_end": science.parameters_at_end,
        "parameters_by_part": costs.parameters_by_part,
        "vocab_size": science.config.model.vocab_size,
        "vocabulary_is_assumed": science.vocabulary_is_assumed,
        "store_problem": science.store_problem or None,
        "flops_per_token": {
            "6N": costs.six_n_flops_per_token,
            "hoffmann": costs.hoffmann_flops_per_token,
            "model": costs.training_flops_per_token,
        },
        "flops": {
            "6N": costs.six_n_flops_per_token * science.tokens,
            "hoffmann": costs.hoffmann_flops_per_token and costs.hoffmann_flops_per_token * science.tokens,
            "model": costs.training_flops_per_token * science.tokens,
        },
        "tokens": science.tokens,
        "tokens_per_step": science.tokens_per_step,
        "steps": science.num_steps,
        "chinchilla_tokens": science.chinchilla_tokens,
        "chinchilla_tokens_rounded": science.chinchilla_tokens_rounded,
        "chinchilla_steps": science.chinchilla_steps,
        "memory_bytes": {kind: {**asdict(one), "total": one.total} for kind, one in estimate.memory.items()},
        "memory_bytes_per_sequence": estimate.memory_per_sequence,
        "checkpoint_bytes": estimate.checkpoint_bytes,
        "checkpoints_at_once": estimate.checkpoints_at_once,
        "disk_bytes": estimate.checkpoint_bytes * estimate.checkpoints_at_once,
        "machines": [asdict(machine) for machine in estimate.machines],
    }


def _print_science(science: "Science") -> None:
    costs, per_step = science.costs, science.tokens_per_step
    at_end = science.parameters_at_end
    ramp = "up to " if science.config.train.batch_ramp else ""
    hoffmann = costs.hoffmann_flops_per_token
    print_table(
        [
            ("parameters", costs.parameters),
            *([("active parameters", costs.active_parameters)] if costs.active_parameters < costs.parameters else []),
            *([("  at the end, with a head of its own", at_end)] if at_end != costs.parameters else []),
            *((f"  {part}", count) for part, count in costs.parameters_by_part.items()),
            ("FLOPs per token, 6N", costs.six_n_flops_per_token),
            ("FLOPs per token, Hoffmann et al. 2022, F", hoffmann if hoffmann is not None else "has no attention"),
            ("FLOPs per token, visible positions only", costs.training_flops_per_token),
            ("FLOPs of the run, 6N", f"{costs.six_n_flops_per_token * science.tokens:.3g}"),
            ("FLOPs of the run, Hoffmann", None if hoffmann is None else f"{hoffmann * science.tokens:.3g}"),
            ("tokens of the run", f"{science.tokens:,} in {science.num_steps:,} steps of {ramp}{per_step:,}"),
            ("Chinchilla tokens, 20 per parameter", science.chinchilla_tokens),
            (
                "  in whole global batches",
                f"{science.chinchilla_tokens_rounded:,} in {science.chinchilla_steps:,} steps",
            ),
        ]
    )


def _print_memory(estimate: "Estimate") -> None:
    for kind, parts in estimate.memory.items():
        print(f"\npredicted memory, {'CPU' if kind == 'cpu' else 'GPU'}, micro-batch 1, without torch.compile")
        rows = [(f"  {part}", readable_bytes(round(size))) for part, size in asdict(parts).items() if size]
        more = readable_bytes(round(estimate.memory_per_sequence[kind]))
        print_table([*rows, ("  total", readable_bytes(round(parts.total))), ("  each further sequence", more)])
    size, count = estimate.checkpoint_bytes, estimate.checkpoints_at_once
    print(f"\ndisk  {readable_bytes(size * count)}: at most {count} checkpoints of {readable_bytes(size)} at once\n")


def _print_machines(machines: "list[MachineForecast]") -> None:
    heads = ("machine", "micro-batch", "tokens/s", "hours", "dollars", "speed", "price")
    print_columns(heads, [_row(machine) for machine in machines])
    print("hours and dollars are those of training alone, without evaluations and saves")


def _row(one: "MachineForecast") -> tuple[str, ...]:
    unknown = "unknown"
    price = unknown if one.dollars_per_hour is None else f"{dollar_range(one.dollars_per_hour)}/h ({one.price_source})"
    divided = " (divided model)" if one.is_divided else ""
    return (
        one.name,
        unknown if one.micro_batch is None else f"{one.micro_batch:,}{divided}" if one.micro_batch else "does not fit",
        unknown if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
        unknown if one.hours is None else f"{one.hours:,.1f}",
        dollar_range(one.dollars),
        one.basis,
        price,
    )


def dollar_range(values: tuple[float, float] | None) -> str:
    """Lowest and highest, as ``$1.20 to 3.40``; ``unknown`` for None."""
    if values is None:
        return "unknown"
    low, high = values
    return f"${low:,.2f}" if low == high else f"${low:,.2f} to {high:,.2f}"
