"""``fromscratch runs cost``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.options import JsonFlag, RunsDir
from fromscratch.cli.output import note, print_columns, print_json, printable
from fromscratch.cli.run_arguments import SomeRuns
from fromscratch.errors import UsageError

if TYPE_CHECKING:
    from fromscratch.runs.costs import RunCost

Price = Annotated[
    float | None,
    typer.Option("--dollars-per-hour", min=0.0, help="Price for all sessions; by default the one that each recorded."),
]
MachineName = Annotated[str | None, typer.Option("--machine", metavar="NAME", help="Take a machine's price instead.")]


def cost(
    runs: SomeRuns = None,
    runs_dir: RunsDir = Path("runs"),
    dollars_per_hour: Price = None,
    machine: MachineName = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what runs have cost: seconds by purpose over all sessions, dollars, dollars per million tokens.

    Dollars are given with and without held-out evaluations. The price is the one given to 'fromscratch train', or here.

    Example: fromscratch runs cost baseline --dollars-per-hour 14.32
    """
    from fromscratch.runs.costs import cost_of
    from fromscratch.runs.overview import resolve_run, runs_in

    if machine is not None:
        dollars_per_hour = _price_of(machine, dollars_per_hour)
    directories = [resolve_run(name, runs_dir) for name in runs] if runs else runs_in(runs_dir)
    found = [cost_of(run, dollars_per_hour=dollars_per_hour) for run in directories]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        note(f"no runs in {runs_dir}")
        return
    heads = ("run", "set-up", "compile", "train", "evaluate", "save", "other", "total", "dollars", "per million tokens")
    print_columns(heads, [_row(one) for one in found])
    if any(one.dollars is not None for one in found):
        print("in brackets: without evaluations")
    for one in found:
        if not one.is_complete:
            note(f"notice: {printable(one.name)}: it has no cost.json; its training steps alone are known")


def _price_of(machine: str, dollars_per_hour: float | None) -> float:
    """Returns the price of a machine. Raises UsageError if there is no single one."""
    from fromscratch.planning.machines import find_machines

    if dollars_per_hour is not None:
        raise UsageError("--machine and --dollars-per-hour both give a price; leave one out")
    price = find_machines([machine])[machine].price_range
    if price is None or price[0] != price[1]:
        said = "no price" if price is None else f"a price between ${price[0]:g} and ${price[1]:g} per hour"
        raise UsageError(f"--machine {machine}: has {said}; give --dollars-per-hour")
    return price[0]


def _row(one: "RunCost") -> tuple[str, ...]:
    purposes = one.seconds if one.is_complete else {**dict.fromkeys(one.seconds), "training": one.seconds["training"]}
    return (
        printable(one.name),
        *("unknown" if seconds is None else f"{seconds:,.1f} s" for seconds in purposes.values()),
        f"{one.total_seconds:,.1f} s",
        _dollars(one.dollars, one.dollars_without_evaluation, ".2f"),
        _dollars(one.dollars_per_million_tokens, one.dollars_per_million_tokens_without_evaluation, ".4f"),
    )


def _dollars(amount: float | None, without: float | None, form: str) -> str:
    return "unknown" if amount is None or without is None else f"${amount:,{form}} (${without:,{form}})"
