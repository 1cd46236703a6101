"""How the command line prints: tables or JSON on stdout, everything else on stderr."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, RUN@latest, RUN@step-N, a checkpoint, an exported or imported folder, "
        "owner/name on the Hugging Face Hub, or gpt2, gpt2-medium, gpt2-large, gpt2-xl.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cuda, cuda:N, mps or cpu; the fastest there is by default.")
]


def print_json(facts: Any) -> None:
    """One JSON value on stdout; what is not finite becomes null."""
    from fromscratch.files import to_strict_json

    print(json.dumps(json.loads(to_strict_json(facts)), indent=2))


def print_table(rows: Iterable[tuple[str, Any]]) -> None:
    """Names and values in two columns."""
    written = [(name, show(value)) for name, value in rows]
    width = max(len(name) for name, _ in written)
    for name, value in written:
        print(f"{name:<{width}}  {value}")


def show(value: Any) -> str:
    """A value for people: thousands separated, four decimals, ``unknown`` for None."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4f}" if isinstance(value, float) else str(value)


def note(message: str, *, quiet: bool = False) -> None:
    """A line on stderr for the person who waits."""
    if not quiet:
        typer.echo(message, err=True)
