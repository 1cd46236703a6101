"""Lines of a byte stream and their offsets, with a maximum length."""

from collections.abc import Iterator
from typing import Protocol

MAX_LINE_BYTES = 128 << 20
BLOCK_BYTES = 1 << 20


class Readable(Protocol):
    """An open file."""

    def read(self, size: int, /) -> bytes: ...


class LineTooLongError(ValueError):
    """A line is longer than any document may be: this is not a JSON Lines file."""


def lines_of(stream: Readable, *, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields offset and bytes of each line that begins in ``[begin, end)``, without its line feed.

    The position of the stream must be ``begin``. Raises LineTooLongError.
    """
    buffer, position = bytearray(), begin
    while end is None or position < end:
        block = stream.read(BLOCK_BYTES)
        searched, used = len(buffer), 0
        buffer += block
        while (feed := buffer.find(b"\n", max(searched, used))) >= 0:
            yield position, bytes(buffer[used:feed])
            position, used = position + feed + 1 - used, feed + 1
            if end is not None and position >= end:
                return
        del buffer[:used]
        if len(buffer) > MAX_LINE_BYTES:
            raise LineTooLongError(f"the line at byte {position} is longer than {MAX_LINE_BYTES >> 20} MiB")
        if not block:
            if buffer:
                yield position, bytes(buffer)
            return
