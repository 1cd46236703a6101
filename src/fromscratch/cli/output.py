"""Prints results as tables or JSON on stdout, and everything else on stderr."""

import errno
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import typer


class DroppingFile(io.FileIO):
    """Stdout or stderr. Drops what nobody can read any more, because that must not fail a run."""

    def __init__(self, descriptor: int, dropped_errors: frozenset[int]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._dropped_errors = dropped_errors
        self.has_dropped = False

    def write(self, data: Any, /) -> int:
        """Writes the bytes; after an error of ``dropped_errors``, returns as if it had."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._dropped_errors:
                raise
            self.has_dropped = True
            return memoryview(data).nbytes


def protect_standard_streams() -> None:
    """Lets the program run on where stdout or stderr is closed, at its start or later.

    A pipe whose reader has ended gives EPIPE, and a closed terminal gives EIO. Stderr, a log, may also be on a full
    disk, but results on stdout must not be lost unnoticed there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # otherwise a file of the run would be opened as 1 or 2, and get what libraries print
    os.close(descriptor)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a key may send half a character
    if sys.stdout is sys.__stdout__:
        sys.stdout = _open_stream(sys.stdout, 1, frozenset({errno.EPIPE, errno.EIO}))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _open_stream(sys.stderr, 2, frozenset(errno.errorcode))


def _open_stream(stream: Any, descriptor: int, dropped_errors: frozenset[int]) -> io.TextIOWrapper:
    file, unbuffered = DroppingFile(descriptor, dropped_errors), stream is not None and stream.write_through
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",  # escapes characters that the terminal's encoding lacks
        line_buffering=stream is None or stream.line_buffering,
        write_through=unbuffered,
    )


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


class NoticeHandler(logging.Handler):
    """Prints what the package logs, such as a choice made for the user."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def write_now(text: str) -> None:
    """Writes text on stdout and flushes it, for output that appears token by token.

    Raises:
        BrokenPipeError: nobody reads it.
    """
    sys.stdout.write(text)
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    file = getattr(buffer, "raw", buffer)
    if isinstance(file, DroppingFile) and file.has_dropped:
        raise BrokenPipeError
