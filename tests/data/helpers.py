"""What the tests of data preparation share."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fromscratch.data.encode import EncodePart
from fromscratch.data.engines import Task
from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.scan import documents_of
from fromscratch.data.store import TokenStore
from fromscratch.sources import Files, InMemory
from fromscratch.tokenizers.bytes import BytesTokenizer

NUMBERED_TEXTS = [f"{number}: " + "words and more words " * (number % 7 + 1) for number in range(400)]


def write_parquet(path: Path, texts: Sequence[str | None], *, row_group_size: int = 1_000) -> Path:
    """A parquet file as FineWeb has them: the text and another column."""
    table = pa.table({"text": pa.array(texts, pa.string()), "id": [str(i) for i in range(len(texts))]})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def store_of(texts: Sequence[str], out: Path, *, validation: float = 0.3, **options: Any) -> TokenStore:
    """A store of bytes from texts at hand."""
    return prepare_store(
        [InMemory("texts", tuple(texts))], BytesTokenizer(), out, rule=SplitRule(validation), **options
    )


def store_of_files(path: Path, out: Path, *, validation: float = 0.3, **options: Any) -> TokenStore:
    """A store of bytes from a file or folder."""
    return prepare_store([Files(path)], BytesTokenizer(), out, rule=SplitRule(validation), **options)


def texts_in(store: TokenStore) -> list[str]:
    """Every document of a store of bytes, split by split."""
    return [
        bytes(ids.tolist()).decode() for name in store.manifest.splits for ids in documents_of(store.split(name), 256)
    ]


def content_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def interrupt_after(parts: int, prepare: Callable[[], Any]) -> bool:
    """Stops a preparation in this process after some parts, as Ctrl-C would."""
    done = 0
    original = EncodePart.__call__

    def stop(self: EncodePart, task: Task, tokenizer: Any) -> Any:
        nonlocal done
        if done == parts:
            raise KeyboardInterrupt
        done += 1
        return original(self, task, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncodePart, "__call__", stop)
        try:
            prepare()
        except KeyboardInterrupt:
            return True
    return False


def command(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs ``fromscratch`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fromscratch", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        timeout=100,
        check=False,
    )
