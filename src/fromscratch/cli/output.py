"""Prints results as tables or JSON on stdout, and everything else on stderr."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import typer


def print_json(value: Any) -> None:
    """Prints a JSON value; NaN and infinities become null."""
    from fromscratch.files import to_strict_json

    print(json.dumps(json.loads(to_strict_json(value)), indent=2))


def print_table(rows: Iterable[tuple[str, Any]]) -> None:
    """Prints names and values in two columns."""
    written = [(name, show(value)) for name, value in rows]
    width = max(len(name) for name, _ in written)
    for name, value in written:
        print(f"{name:<{width}}  {value}")


def show(value: Any) -> str:
    """Formats a value: thousands separators, four decimals, ``unknown`` for None."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4f}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Escapes control characters and line breaks, because names of files may contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def local_time(instant: str | None) -> str:
    """Formats an ISO instant in this machine's time zone, to the minute."""
    return "unknown" if instant is None else datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M")


def print_columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; if the terminal is too narrow, prints each row as a block of lines."""
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
    """Returns the columns of the terminal; no limit if stdout is not a terminal."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return sys.maxsize


def note(message: str, *, quiet: bool = False) -> None:
    """Prints a message on stderr, unless ``quiet``."""
    if not quiet:
        typer.echo("\n".join(printable(line) for line in message.splitlines()), err=True)


def write_now(text: str) -> None:
    """Writes text on stdout and flushes it, for output that appears token by token."""
    sys.stdout.write(text)
    sys.stdout.flush()
