"""``metrics.jsonl`` as arrays: all steps of a run, read once and then continued where the file has grown."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import json as arrow_json

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import record_in, to_count, to_float
from fromscratch.runs.states import StepOutcome

BLOCK_BYTES = 1 << 19
MAX_CACHED_BYTES = 100 << 20
MAX_COLUMNS = 24
PREVIEW_LINES = 1_000
MAX_PREVIEW_BYTES = 1 << 14
KNOWN = ("loss", "loss_min", "loss_max", "grad_norm", "learning_rate", "tokens_per_second", "seconds", "tokens")
OTHER_KEYS = ("step", "clipped", "nonfinite", "outcome")
OUTCOMES = tuple(StepOutcome)
UNKNOWN_OUTCOME = -1
SCHEMA = pa.schema([("step", pa.int64()), *((name, pa.float64()) for name in KNOWN), ("outcome", pa.string())])

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """The steps of a run in order. Values that were not finite, or are missing, are NaN."""

    step: NDArray[np.int64]
    values: dict[str, NDArray[np.floating]]
    """By key of the records; ``KNOWN`` are always there."""
    outcome: NDArray[np.int8]
    """Index into ``OUTCOMES``, or -1."""
    skipped: int = 0
    """Lines that are no record of a step, and steps that a later line repeats."""

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return self.step.nbytes + self.outcome.nbytes + sum(array.nbytes for array in self.values.values())

    @property
    def auxiliary(self) -> list[str]:
        """Keys of further numbers, such as a second loss."""
        return [name for name in self.values if name not in KNOWN]

    def steps_of(self, outcome: StepOutcome) -> NDArray[np.int64]:
        """The steps that ended so."""
        return self.step[self.outcome == OUTCOMES.index(outcome)]


class _Columns:
    """Columns that grow at their end. What was handed out before shares their memory, and never changes."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self._count = 0
        self._skipped = 0

    def append(self, part: Metrics, expected: int) -> None:
        """Adds rows. ``expected`` is how many there may be in all; memory is only taken for those that come."""
        end = self._count + len(part.step)
        columns: dict[str, NDArray[Any]] = {"step": part.step, "outcome": part.outcome, **part.values}
        for name in list(dict.fromkeys([*self._arrays, *columns]))[: MAX_COLUMNS + 2]:
            new = columns.get(name)
            array = self._arrays.get(name, np.empty(0, None if new is None else new.dtype))
            if end > len(array):
                grown = np.empty(max(expected, end + end // 8), array.dtype)
                grown[: len(array)] = array
                grown[len(array) :] = UNKNOWN_OUTCOME if array.dtype.kind == "i" else np.nan
                self._arrays[name] = array = grown
            if new is not None:
                array[self._count : end] = new
        self._count, self._skipped = end, self._skipped + part.skipped

    def metrics(self) -> Metrics:
        """All rows in order of their steps."""
        shown = {name: array[: self._count] for name, array in self._arrays.items()}
        if not shown:
            return EMPTY
        step, outcome = shown.pop("step"), shown.pop("outcome")
        found = Metrics(step, shown, outcome, self._skipped)
        if not (np.diff(step) > 0).all():
            found = _in_order(found)
            self._arrays = {"step": found.step, "outcome": found.outcome, **found.values}
            self._count, self._skipped = len(found.step), found.skipped
        return found


EMPTY = Metrics(np.empty(0, np.int64), {name: np.empty(0, np.float32) for name in KNOWN}, np.empty(0, np.int8))


@dataclass
class _File:
    """What is known of one file, and how far it was read."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    inode: int = 0
    offset: int = 0
    is_in_long_line: bool = False
    columns: _Columns = field(default_factory=_Columns)
    found: Metrics = EMPTY


class MetricsCache:
    """Reads metrics; keeps those of the runs that were asked for last."""

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, run: RunDirectory) -> Metrics:
        """All steps that are on the disk now; a line that is still being written is left for the next call."""
        with self._lock:
            file = self._files.setdefault(run.metrics, _File())
            self._files.move_to_end(run.metrics)
        with file.lock:
            _continue(run.metrics, file)
            found = file.found
        self._drop_oldest()
        return found

    def unread_bytes(self, run: RunDirectory) -> int:
        """How much of the file ``read`` would have to read."""
        file = self._files.get(run.metrics)
        try:
            return run.metrics.stat().st_size - (file.offset if file else 0)
        except OSError:
            return 0

    def preview(self, run: RunDirectory) -> Metrics:
        """Steps at equal distances in the file, found without reading the rest."""
        try:
            with run.metrics.open("rb") as opened:
                size = run.metrics.stat().st_size
                found = []
                for place in range(PREVIEW_LINES):
                    opened.seek(size * place // PREVIEW_LINES)
                    if place:
                        opened.readline(MAX_PREVIEW_BYTES)
                    found.append(opened.readline(MAX_PREVIEW_BYTES))
        except OSError:
            return EMPTY
        columns = _Columns()
        columns.append(parse(b"".join(line for line in found if line.endswith(b"\n"))), 0)
        return columns.metrics()

    def _drop_oldest(self) -> None:
        with self._lock:
            while len(self._files) > 1 and sum(f.found.num_bytes for f in self._files.values()) > self._max_bytes:
                self._files.popitem(last=False)


def _continue(path: Path, file: _File) -> None:
    try:
        with path.open("rb") if path.is_file() else BytesIO() as opened:
            status = path.stat() if path.is_file() else None
            inode, size = (status.st_ino, status.st_size) if status else (0, 0)
            if inode != file.inode or size < file.offset:  # a resume has written the file anew
                file.inode, file.offset, file.is_in_long_line, file.found = inode, 0, False, EMPTY
                file.columns = _Columns()
            opened.seek(file.offset)
            begin, num_rows = file.offset, 0
            while block := opened.read(BLOCK_BYTES):
                whole = block[: block.rfind(b"\n") + 1]
                if not whole and len(block) < BLOCK_BYTES:
                    break  # the last line is still being written
                if not whole:
                    file.is_in_long_line, file.offset = True, file.offset + len(block)
                    continue
                file.offset += len(whole)
                opened.seek(file.offset)
                if file.is_in_long_line:
                    whole, file.is_in_long_line = whole[whole.find(b"\n") + 1 :], False
                part = parse(whole)
                num_rows += len(part.step)
                file.columns.append(part, num_rows * (size - begin) // (file.offset - begin))
            if file.offset > begin:
                file.found = file.columns.metrics()
    except OSError:
        return


def parse(lines: bytes) -> Metrics:
    """Parses whole lines. Lines that are no record of a step are skipped and counted."""
    if not lines.strip():
        return EMPTY
    try:
        table = arrow_json.read_json(
            BytesIO(lines),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=SCHEMA),
            memory_pool=pa.system_memory_pool(),  # returns memory sooner than Arrow's own
        )
    except (pa.ArrowException, ValueError):
        return _parse_by_line(lines)
    numeric = {
        name: table.column(name).to_numpy()
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if name not in OTHER_KEYS and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    }
    step = table.column("step")
    if step.null_count:
        return _parse_by_line(lines)
    codes = table.column("outcome").combine_chunks().dictionary_encode()
    codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
    known = np.array([_code(name) for name in codes.dictionary.to_pylist()] + [UNKNOWN_OUTCOME], np.int8)
    outcome = known[codes.indices.fill_null(len(known) - 1).to_numpy()]
    skipped = sum(1 for line in lines.split(b"\n") if line.strip()) - table.num_rows
    return _metrics(step.to_numpy(), numeric, outcome, max(0, skipped))


def _parse_by_line(lines: bytes) -> Metrics:
    steps, outcomes, skipped = [], [], 0
    rows: list[dict[str, float | None]] = []
    for line in lines.split(b"\n"):
        if not line.strip():
            continue
        record = record_in(line)
        step = to_count((record or {}).get("step"))
        if record is None or step is None:
            skipped += 1
            continue
        steps.append(step)
        outcomes.append(_code(record.get("outcome")))
        rows.append({name: to_float(value) for name, value in record.items() if name not in OTHER_KEYS})
    names = list(dict.fromkeys([*KNOWN, *(name for row in rows for name, value in row.items() if value is not None)]))
    columns = {name: np.array([row.get(name) for row in rows], np.float64) for name in names[:MAX_COLUMNS]}
    return _metrics(np.array(steps, np.int64), columns, np.array(outcomes, np.int8), skipped)


def _metrics(step: NDArray[np.int64], columns: dict[str, Floats], outcome: NDArray[np.int8], skipped: int) -> Metrics:
    """Halves the memory of all values but counts. What single precision cannot hold is no measurement: NaN."""
    values: dict[str, NDArray[np.floating]] = {}
    with np.errstate(over="ignore"):
        for name, column in columns.items():
            array: NDArray[np.floating] = column.astype(np.float64 if name == "tokens" else np.float32)
            array[~np.isfinite(array)] = np.nan
            values[name] = array
    return Metrics(step, values, outcome, skipped)


def _in_order(found: Metrics) -> Metrics:
    """Sorts by step. Of lines with the same step the last one counts, as it was written after a resume."""
    last = len(found.step) - 1 - np.unique(found.step[::-1], return_index=True)[1]
    values = {name: column[last] for name, column in found.values.items()}
    return Metrics(found.step[last], values, found.outcome[last], found.skipped + len(found.step) - len(last))


def _code(outcome: Any) -> int:
    return OUTCOMES.index(outcome) if outcome in OUTCOMES else UNKNOWN_OUTCOME
