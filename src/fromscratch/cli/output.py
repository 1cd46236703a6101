"""How the command line prints: tables or JSON on stdout, everything else on stderr."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import typer


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


def printable(text: str) -> str:
    """A name from a disk or a file as it may be shown: control characters as escapes, on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def local_time(instant: str | None) -> str:
    """An ISO instant on this machine's clock, to the minute."""
    return "unknown" if instant is None else datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M")


def print_columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with a line per row; where the terminal is too narrow for it, each row as a block of lines."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) <= _width():
        for row in (heads, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    for row in rows:
        print(row[0])
        for head, cell in zip(heads[1:], row[1:], strict=True):
            print(f"  {head:<{max(map(len, heads))}}  {cell}".rstrip())


def _width() -> int:
    """Columns of the terminal; without end where nobody sees one."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return sys.maxsize


def note(message: str, *, quiet: bool = False) -> None:
    """A line on stderr for the person who waits."""
    if not quiet:
        typer.echo("\n".join(printable(line) for line in message.splitlines()), err=True)
