"""Prepares a token store from sources: part by part, on all cores, restartable, deterministic.

An engine encodes the parts in any order; each becomes shards of its own. ``plan.json`` in the work
folder records the sources and settings, ``part-NNNNN.json`` a finished part. The manifest is written
last, from all parts in order. A process that is killed loses only its unfinished parts.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fromscratch.data.deduplicate import HashPart, hashes_path, mark_duplicates
from fromscratch.data.disk_space import check_disk_space
from fromscratch.data.documents import (
    REPAIR_ADVICE,
    SPLITS,
    VALIDATION,
    DocumentRule,
    SplitRule,
    training_documents,
)
from fromscratch.data.encode import EncodePart, read_finished_part
from fromscratch.data.engines.base import DocumentEncoder, Engine, InProcess, Record, RunJob, Task
from fromscratch.data.plan import Checksums, differences, earlier_hash_of, hash_of, make_plan
from fromscratch.data.shards import dtype_for
from fromscratch.data.store import STORE_FORMAT, TOKENIZER_FOLDER, TokenStore, open_store
from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST, flush_folder, locked, read_json_object, to_strict_json, write_atomically
from fromscratch.sources.base import DAMAGED, DamagedFile, Source

__all__ = ["VALIDATION", "SplitRule", "prepare_store", "training_documents"]

WORK_FOLDER = ".preparing"
PLAN, CHECKSUMS, LOCK = "plan.json", "checksums.json", "lock"


class PreparationObserver:
    """Base class with no-op callbacks."""

    def begin(self, *, total_bytes: int, done_bytes: int) -> None:
        """Called when the workers are ready. An earlier session finished ``done_bytes``; a total of 0 is unknown."""

    def on_part(self, *, part_bytes: int, tokens: int, text_bytes: int) -> None:
        """Called when a part is done, with its estimated size and its counts."""

    def end(self) -> None:
        """Called when all parts are done or the work stops."""


def prepare_store(
    sources: Sequence[Source],
    tokenizer: DocumentEncoder,
    out: Path,
    *,
    rule: SplitRule,
    documents: DocumentRule | None = None,
    engine: Engine | None = None,
    observer: PreparationObserver | None = None,
) -> TokenStore:
    """Encodes the sources into a store, continues an interrupted preparation, or opens the finished store.

    Args:
        rule: decides which documents are held out.
        documents: decides which documents are kept; by default all that hold text.
        engine: runs the work; by default in this process.

    Raises:
        UsageError: ``out`` holds something else, is being written by another process, or lacks space.
        DataError: the sources hold no text, or damaged input (unless it is skipped).
    """
    tokenizer.check_end_of_text("ends the documents of a store; use another tokenizer")
    tasks = [Task(index, part) for index, part in enumerate(p for source in sources for p in source.parts())]
    kept = documents or DocumentRule()
    work = out / WORK_FOLDER
    checksums = Checksums(work / CHECKSUMS)
    plan = make_plan(sources, tokenizer, rule, kept, tasks, checksums)
    if (out / MANIFEST).exists():
        return _open_finished(out, plan, kept)
    _raise_if_damaged(tasks, kept)
    refusal = f"{out}: is being prepared by another process; wait for it, or stop it"
    with locked(_make_work_folder(out) / LOCK, refusal=refusal):
        _check_plan(out, plan)
        checksums.save(work / CHECKSUMS)
        done = {task.index: record for task in tasks if (record := read_finished_part(out, work, task.index))}
        _check_skipped(out, (record["skipped"] for record in done.values()), kept)
        check_disk_space(out, [task for task in tasks if task.index not in done], tokenizer)
        tokenizer.save(work / TOKENIZER_FOLDER)
        job = EncodePart(out, work, rule, kept)
        with (engine or InProcess(tokenizer)).started(work / TOKENIZER_FOLDER) as run_job:
            done |= _encode(run_job, tasks, done, job, observer or PreparationObserver())
        checksums.check_unchanged()
        _write_manifest(out, plan, [done[task.index] for task in tasks], dtype_for(tokenizer.vocab_size))
    shutil.rmtree(work)
    return open_store(out)


def _encode(
    run_job: RunJob, tasks: list[Task], done: dict[int, Record], job: EncodePart, observer: PreparationObserver
) -> dict[int, Record]:
    """Encodes the parts that are not done; returns their records."""
    rest = [task for task in tasks if task.index not in done]
    total_bytes = sum(task.part.text_bytes for task in tasks)
    observer.begin(total_bytes=total_bytes, done_bytes=total_bytes - sum(task.part.text_bytes for task in rest))
    records = {}
    try:
        if job.documents.deduplicate and rest:
            _find_duplicates(run_job, tasks, job)
        for record in run_job(job, rest):
            records[record["index"]] = record
            tokens, text_bytes = (sum(shard[key] for shard in record["shards"]) for key in ("tokens", "bytes"))
            part_bytes = tasks[record["index"]].part.text_bytes
            observer.on_part(part_bytes=part_bytes, tokens=tokens, text_bytes=text_bytes)
    finally:
        observer.end()
    return records


def _find_duplicates(run_job: RunJob, tasks: list[Task], job: EncodePart) -> None:
    unread = [task for task in tasks if not hashes_path(job.work, task.index).is_file()]
    for _ in run_job(HashPart(job.work, job.documents), unread):
        pass
    mark_duplicates(job.work, len(tasks))


def _open_finished(out: Path, plan: dict[str, Any], kept: DocumentRule) -> TokenStore:
    """Opens the finished store, and removes a work folder that was left. Raises UsageError for another plan."""
    manifest = read_json_object(out / MANIFEST)
    if manifest.get("plan_sha256") not in (hash_of(plan), earlier_hash_of(plan)):
        what = differences(manifest, plan)
        raise UsageError(
            f"{out}: already a finished store, made of something else{f' ({what})' if what else ''}; choose another "
            "--out, or delete it"
        )
    store = open_store(out)
    _check_skipped(out, [store.manifest.skipped], kept)
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return store


def _check_skipped(out: Path, skipped: Iterable[dict[str, int]], kept: DocumentRule) -> None:
    """Raises UsageError where damaged input was skipped that this command does not skip."""
    damaged = sum(counts.get(DAMAGED, 0) for counts in skipped)
    if damaged and not kept.skip_bad:
        raise UsageError(
            f"{out}: made with --skip-bad, which left out {damaged:,} damaged documents or files; give --skip-bad, or "
            "repair them and choose another --out"
        )


def _raise_if_damaged(tasks: list[Task], rule: DocumentRule) -> None:
    """Raises DataError before the work starts, not hours later."""
    damaged = [task.part for task in tasks if isinstance(task.part, DamagedFile)]
    for part in damaged if not rule.skip_bad else []:
        others = f" ({len(damaged) - 1} more files are damaged)" if len(damaged) > 1 else ""
        raise DataError(f"{part.error}{others}; {REPAIR_ADVICE}")


def _make_work_folder(out: Path) -> Path:
    """Makes the work folder, unless an interrupted preparation left one."""
    work = out / WORK_FOLDER
    if out.exists() and not work.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: not empty, and holds no unfinished preparation; choose another --out")
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / LOCK).touch()
    except OSError as error:
        raise UsageError(f"{out}: cannot be created ({error.strerror}); choose another --out") from error
    return work


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    plan_file = out / WORK_FOLDER / PLAN
    if plan_file.is_file() and (old := read_json_object(plan_file)) != plan:
        what = differences(old, plan) or "of another version of this program"
        raise UsageError(
            f"{out}: holds an unfinished preparation with other settings or sources ({what}); delete it, or choose "
            "another --out"
        )
    _remove_temporary_files(out)
    write_atomically(plan_file, to_strict_json(plan))


def _remove_temporary_files(out: Path) -> None:
    """Deletes the temporary files of killed processes."""
    for folder in (out, out / WORK_FOLDER, out / WORK_FOLDER / TOKENIZER_FOLDER):
        for path in folder.glob(".*.tmp-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _write_manifest(out: Path, plan: dict[str, Any], records: list[Record], dtype: str) -> None:
    splits: dict[str, Any] = {}
    for split in SPLITS:
        shards = [s for record in records for s in record["shards"] if s["split"] == split]
        sums = {key: sum(s[key] for s in shards) for key in ("tokens", "documents", "bytes")}
        kept = [{k: v for k, v in s.items() if k not in ("split", "file_bytes")} for s in shards]
        if any("decoded_bytes" in record for record in records):
            sums["decoded_bytes"] = sum(record["decoded_bytes"].get(split, 0) for record in records)
        splits[split] = sums | {"shards": kept}
    if not any(split["tokens"] for split in splits.values()):
        raise DataError(f"{', '.join(plan['source'])}: no text found, so there is nothing to store")
    reasons = sorted({reason for record in records for reason in record["skipped"]})
    fallbacks = Counter(record["fallback"] for record in records if "fallback" in record)
    manifest = {
        "store_format": STORE_FORMAT,
        "tokenizer": plan["tokenizer"],
        "dtype": dtype,
        "splits": splits,
        "source": plan["source"],
        "split_rule": plan["split_rule"],
        "documents": plan["documents"],
        "skipped": {reason: sum(record["skipped"].get(reason, 0) for record in records) for reason in reasons},
        "text_columns": plan["text_columns"],
        "files": plan["files"],
        "altered": sum(record.get("altered", 0) for record in records),
        "plan_sha256": hash_of(plan),
    }
    if fallbacks:
        manifest["fallbacks"] = dict(sorted(fallbacks.items()))
    _remove_temporary_files(out)
    shutil.rmtree(out / TOKENIZER_FOLDER, ignore_errors=True)
    shutil.copytree(out / WORK_FOLDER / TOKENIZER_FOLDER, out / TOKENIZER_FOLDER)
    flush_folder(out)
    write_atomically(out / MANIFEST, to_strict_json(manifest, indent=1))
