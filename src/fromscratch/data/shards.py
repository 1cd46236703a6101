"""One shard of a token store: a safetensors file with one 1-D tensor, ``tokens``.

A shard is written as a stream, so memory does not grow with its length: the header has a fixed size,
padded with blanks as the format allows, and is written at the end. A shard is read by memory map.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fromscratch.errors import DataError

TENSOR = "tokens"
HEADER_BYTES = 256
LENGTH_FIELD_BYTES = 8
MAX_HEADER_BYTES = 1 << 20
DTYPES: dict[str, Any] = {"U16": np.uint16, "U32": np.uint32}
DTYPE_NAMES = {"uint16": "U16", "uint32": "U32"}

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


def dtype_for(vocab_size: int) -> str:
    """Returns ``uint16`` where every id fits, else ``uint32``."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class ShardWriter:
    """Writes token ids to a file that appears under its name only when complete."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.tokens = 0
        self._dtype = dtype
        self._temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        self._file = self._temporary.open("wb")
        self._file.write(b" " * HEADER_BYTES)

    def write(self, ids: NDArray[Any]) -> None:
        """Appends ids, [n] of any integer type. Raises ValueError for an id that the dtype cannot hold."""
        if ids.size and int(ids.max()) > np.iinfo(self._dtype).max:
            raise ValueError(f"token id {int(ids.max())} does not fit in {self._dtype}")
        self._file.write(ids.astype(self._dtype).tobytes())
        self.tokens += int(ids.size)

    def close(self) -> None:
        """Writes the header, flushes the file to the disk, and renames it."""
        data_bytes = self.tokens * np.dtype(self._dtype).itemsize
        entry = {"dtype": DTYPE_NAMES[self._dtype], "shape": [self.tokens], "data_offsets": [0, data_bytes]}
        header = json.dumps({TENSOR: entry}).encode().ljust(HEADER_BYTES - LENGTH_FIELD_BYTES)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(LENGTH_FIELD_BYTES, "little") + header)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)

    def discard(self) -> None:
        """Deletes the unfinished file."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def map_shard(path: Path) -> Tokens:
    """Returns the tokens of a shard, [n], as a read-only memory map.

    Raises:
        DataError: missing, truncated, not safetensors, or not a 1-D tensor of uint16 or uint32.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(LENGTH_FIELD_BYTES), "little")
            if size < LENGTH_FIELD_BYTES or header_bytes > min(size, MAX_HEADER_BYTES):
                raise DataError(f"{path}: not a safetensors file ({size} bytes, header of {header_bytes})")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise DataError(f"{path}: shard cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a safetensors file (its header is not JSON)") from error
    entry = header.get(TENSOR) if isinstance(header, dict) else None
    if not isinstance(entry, dict):
        raise DataError(f"{path}: holds no tensor named '{TENSOR}'")
    dtype, shape = DTYPES.get(str(entry.get("dtype"))), entry.get("shape")
    if dtype is None:
        raise DataError(f"{path}: tokens of dtype {entry.get('dtype')}, expected U16 or U32")
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 0:
        raise DataError(f"{path}: tokens of shape {shape}, expected one dimension")
    data_bytes, offsets = shape[0] * np.dtype(dtype).itemsize, entry.get("data_offsets")
    offset = _data_offset(offsets, data_bytes)
    if offset is None:
        raise DataError(f"{path}: data_offsets {offsets} do not fit {shape[0]} tokens; its header is damaged")
    begin = LENGTH_FIELD_BYTES + header_bytes + offset
    needed = begin + data_bytes
    if size < needed:
        raise DataError(f"{path}: {size} bytes, but {shape[0]} tokens need {needed}; the file is truncated")
    if shape[0] == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=begin, shape=(shape[0],))


def _data_offset(offsets: Any, data_bytes: int) -> int | None:
    """Returns the offset of the data; None unless the offsets are the begin and end of that many bytes."""
    is_pair = isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(place, int) for place in offsets)
    return int(offsets[0]) if is_pair and offsets[0] >= 0 and offsets[1] - offsets[0] == data_bytes else None
