"""What decides the content of a store: tokenizer, sources and rules, and the content of every file that is read."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import stat_result
from pathlib import Path
from typing import Any

from fromscratch.data.documents import DocumentRule, SplitRule
from fromscratch.data.engines.base import DocumentEncoder, Task
from fromscratch.errors import DataError
from fromscratch.files import read_json_object, sha256_of, to_strict_json, write_atomically
from fromscratch.sources.base import Document, Source

MAX_SHOWN_DIFFERENCES = 3
EARLIER_KEYS = ("tokenizer", "source", "split_rule", "documents", "parts")
"""What stores of earlier versions were identified by."""

Plan = dict[str, Any]


def make_plan(
    sources: Sequence[Source],
    tokenizer: DocumentEncoder,
    rule: SplitRule,
    documents: DocumentRule,
    tasks: list[Task],
    checksums: "Checksums",
) -> Plan:
    """Describes a preparation: the same plan makes the same store."""
    columns = {getattr(task.part, "column", None) or getattr(task.part, "key", None) for task in tasks}
    return {
        "tokenizer": tokenizer.description(),
        "source": [source.description for source in sources],
        "split_rule": rule.to_dict(),
        "documents": documents.to_dict(),
        "parts": [[task.part.name, task.part.text_bytes] for task in tasks],
        "text_columns": sorted(filter(None, columns)),
        "texts": [_text_hash(task.part.texts) for task in tasks if hasattr(task.part, "texts")],
        "files": list(_contents(tasks, checksums)),
    }


def _contents(tasks: list[Task], checksums: "Checksums") -> Iterator[list[Any]]:
    """Yields name, size and SHA-256 of each file that is read, or of all files of a part of several."""
    names: dict[tuple[Path, ...], str] = {}
    for task in tasks:
        names.setdefault(task.part.files, task.part.name)
    found = checksums.of(list(dict.fromkeys(path for files in names for path in files)))
    for files, name in names.items():
        entries = [found[path] for path in files]
        if len(files) == 1:
            yield [files[0].name, *entries[0]]
        elif files:
            together = hashlib.sha256(to_strict_json(entries).encode()).hexdigest()
            yield [name, sum(size for size, _ in entries), together]


def hash_of(plan: Plan) -> str:
    """Identifies a plan."""
    return hashlib.sha256(to_strict_json(plan).encode()).hexdigest()


def earlier_hash_of(plan: Plan) -> str:
    """Identifies a plan as earlier versions did: by the names and sizes of its parts."""
    return hash_of({key: plan[key] for key in EARLIER_KEYS})


def differences(old: Plan, new: Plan) -> str:
    """Says in words what differs between two plans."""
    found = list(_differences(old, new))
    more = f" and {len(found) - MAX_SHOWN_DIFFERENCES} more" if len(found) > MAX_SHOWN_DIFFERENCES else ""
    return "; ".join(found[:MAX_SHOWN_DIFFERENCES]) + more


def _differences(old: Plan, new: Plan) -> Iterator[str]:
    for key, value in new.items():
        before = old.get(key)
        if before is None or before == value or key == "files":
            continue
        if key == "tokenizer":
            yield f"tokenizer {before.get('name')}, now {value['name']}"
        elif isinstance(value, dict):
            changed = [name for name in {**before, **value} if before.get(name) != value.get(name)]
            yield from (f"{name.replace('_', ' ')} {before.get(name)}, now {value.get(name)}" for name in changed)
        elif key in ("parts", "texts"):
            continue  # the files say it better
        else:
            yield f"{key.replace('_', ' ')} {', '.join(before)}, now {', '.join(value)}"
    yield from _changed_files(old.get("files"), new["files"])
    if old.get("texts", new["texts"]) != new["texts"]:
        yield "another text"


def _changed_files(old: list[list[Any]] | None, new: list[list[Any]]) -> Iterator[str]:
    if old is None:
        return
    before, now = (_by_name(files) for files in (old, new))
    yield from (f"{name} has another content" for name in now if name in before and before[name] != now[name])
    yield from (f"{name} was not there before" for name in now if name not in before)
    yield from (f"{name} is not there any more" for name in before if name not in now)


def _by_name(files: list[list[Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, *content in files:
        found.setdefault(name, []).append(content)  # folders may have files of equal names
    return found


class Checksums:
    """SHA-256 of files. A file whose size and times of change are as remembered is not read again.

    Args:
        memory: a JSON file to remember them in.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, Any] = {}
        self._read: dict[Path, list[Any]] = {}
        if memory is not None and memory.is_file():
            try:
                self._known = read_json_object(memory)
            except DataError:
                self._known = {}  # written again below

    def of(self, files: list[Path]) -> dict[Path, tuple[int, str | None]]:
        """Returns size and SHA-256 of each file; no SHA-256 where it cannot be read, so that it is damaged."""
        with ThreadPoolExecutor() as pool:
            self._read = dict(zip(files, pool.map(self._entry, files), strict=True))
        return {path: (entry[0], entry[-1]) for path, entry in self._read.items()}

    def check_unchanged(self) -> None:
        """Raises DataError where a file was changed since its checksum was taken: its store would be a mixture."""
        for path, entry in self._read.items():
            if self._entry(path)[-1] != entry[-1]:
                raise DataError(
                    f"{path}: was changed while the store was made of it; delete the unfinished store, and begin again"
                )

    def save(self, memory: Path) -> None:
        """Remembers all checksums in a file."""
        write_atomically(memory, to_strict_json(self._known))

    def _entry(self, path: Path) -> list[Any]:
        name = str(path.resolve())
        try:
            stamp, known = _stamp(path.stat()), self._known.get(name)
            if not (isinstance(known, list) and known[:-1] == stamp):
                self._known[name] = known = [*stamp, sha256_of(path)]
        except OSError:
            return [0, None]
        return known


def _stamp(found: stat_result) -> list[int]:
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]  # the last one changes with every write


def _text_hash(texts: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = (text if isinstance(text, str) else text.reason).encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
