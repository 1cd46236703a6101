"""From sources to a token store, part by part: on all cores, restartable, the same every time.

The parts are worked on in any order by an engine; each becomes shards of its own. ``plan.json`` in
the work folder says what is being made, ``part-NNNNN.json`` which parts are done, and the manifest
is written last, from all of them in order. Whoever is killed loses the parts under way, no more.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fromscratch.data.deduplicate import HashPart, hashes_of, mark_duplicates
from fromscratch.data.documents import TRAIN, VALIDATION, DocumentRule, SplitRule, training_documents
from fromscratch.data.encode import SPLITS, EncodePart, finished_part
from fromscratch.data.engines.base import DocumentEncoder, Engine, Facts, InProcess, Run, Task
from fromscratch.data.shards import dtype_for
from fromscratch.data.space import check_space
from fromscratch.data.store import STORE_FORMAT, TOKENIZER_FOLDER, TokenStore, open_store
from fromscratch.errors import DataError, UsageError
from fromscratch.files import MANIFEST, flush_folder, read_json_object, to_strict_json, write_atomically
from fromscratch.sources.base import DamagedFile, Source

__all__ = ["TRAIN", "VALIDATION", "DocumentRule", "SplitRule", "prepare_store", "training_documents"]

WORK_FOLDER = ".preparing"
PLAN, LOCK = "plan.json", "lock"


class PreparationObserver:
    """Told what happens; this one says nothing."""

    def begin(self, *, total_bytes: int, done_bytes: int, tokens: int) -> None:
        """Workers are ready. ``done_bytes`` and ``tokens`` were finished by an earlier session; 0 bytes is unknown."""

    def on_part(self, name: str, *, part_bytes: int, tokens: int, text_bytes: int) -> None:
        """A part is done: its estimated size, and what it turned out to hold."""

    def end(self) -> None:
        """All parts are done, or the work stops."""


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
    """Tokenises the sources into a store, finishes a preparation that was interrupted, or finds it done.

    Args:
        rule: which documents are held out.
        documents: which documents are kept; by default all that hold text.
        engine: who does the work; this process by default.

    Raises:
        UsageError: ``out`` holds something else, is being written by another process, or lacks space.
        DataError: the sources hold no text, or damaged input (unless bad input is skipped).
    """
    tasks = [Task(index, part) for index, part in enumerate(p for source in sources for p in source.parts())]
    kept = documents or DocumentRule()
    plan = _plan(sources, tokenizer, (rule, kept), tasks)
    if (out / MANIFEST).exists():
        return _finished_before(out, plan)
    _refuse_damaged(tasks, kept)
    work = out / WORK_FOLDER
    with _locked(_begin(out)):
        _check_plan(out, plan)
        done = {task.index: facts for task in tasks if (facts := finished_part(out, work, task.index))}
        rest = [task for task in tasks if task.index not in done]
        check_space(out, rest, tokenizer)
        tokenizer.save(work / TOKENIZER_FOLDER)
        job = EncodePart(out, work, rule, kept)
        with (engine or InProcess(tokenizer)).started(work / TOKENIZER_FOLDER) as run:
            done |= _encode(run, tasks, done, job, observer or PreparationObserver())
        _finish(out, plan, [done[task.index] for task in tasks], dtype_for(tokenizer.vocab_size))
    shutil.rmtree(work)
    return open_store(out)


def _encode(
    run: Run, tasks: list[Task], done: dict[int, Facts], job: EncodePart, observer: PreparationObserver
) -> dict[int, Facts]:
    """Runs the parts that are not done; returns their records."""
    rest = [task for task in tasks if task.index not in done]
    earlier_bytes = sum(task.part.text_bytes for task in tasks if task.index in done)
    observer.begin(
        total_bytes=sum(task.part.text_bytes for task in tasks),
        done_bytes=earlier_bytes,
        tokens=sum(_sum(facts, "tokens") for facts in done.values()),
    )
    results = {}
    try:
        if job.documents.deduplicate and rest:
            _find_duplicates(run, tasks, job)
        for facts in run(job, rest):
            part = tasks[facts["index"]].part
            results[facts["index"]] = facts
            observer.on_part(
                part.name, part_bytes=part.text_bytes, tokens=_sum(facts, "tokens"), text_bytes=_sum(facts, "bytes")
            )
    finally:
        observer.end()
    return results


def _find_duplicates(run: Run, tasks: list[Task], job: EncodePart) -> None:
    unread = [task for task in tasks if not hashes_of(job.work, task.index).is_file()]
    for _ in run(HashPart(job.work, job.documents), unread):
        pass
    mark_duplicates(job.work, len(tasks))


def _sum(facts: Facts, key: str) -> int:
    return sum(shard[key] for shard in facts["shards"])


def _plan(
    sources: Sequence[Source], tokenizer: DocumentEncoder, rules: tuple[SplitRule, DocumentRule], tasks: list[Task]
) -> dict[str, Any]:
    """What is being made: two preparations with the same plan make the same store."""
    return {
        "tokenizer": tokenizer.description(),
        "source": [source.description for source in sources],
        "split_rule": rules[0].facts(),
        "documents": rules[1].facts(),
        "parts": [[task.part.name, task.part.text_bytes] for task in tasks],
    }


def _plan_hash(plan: dict[str, Any]) -> str:
    return hashlib.sha256(to_strict_json(plan).encode()).hexdigest()


def _finished_before(out: Path, plan: dict[str, Any]) -> TokenStore:
    """The store that is there, if the same command made it; clears up after a death in the last moment."""
    if read_json_object(out / MANIFEST).get("plan_sha256") != _plan_hash(plan):
        raise UsageError(f"{out}: already a finished store, made of something else; choose another --out, or delete it")
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return open_store(out)


def _refuse_damaged(tasks: list[Task], rule: DocumentRule) -> None:
    """Says at once what would otherwise end the work after hours."""
    damaged = [task.part for task in tasks if isinstance(task.part, DamagedFile)]
    for part in damaged if not rule.skip_bad else []:
        others = f" ({len(damaged) - 1} more files are damaged)" if len(damaged) > 1 else ""
        raise DataError(f"{part.error}{others}; mend it, or leave such input out with --skip-bad")


def _begin(out: Path) -> Path:
    """Makes the work folder, or finds the one an interrupted preparation left."""
    work = out / WORK_FOLDER
    if out.exists() and not work.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: not empty and no preparation was begun there; choose another --out")
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / LOCK).touch()
    except OSError as error:
        raise UsageError(f"{out}: cannot be created ({error.strerror}); choose another --out") from error
    return work


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Holds the work folder for this process; the lock ends with it, however it ends."""
    with (work / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{work.parent}: is being prepared by another process; wait for it, or stop it") from None
        yield


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    plan_file = out / WORK_FOLDER / PLAN
    if plan_file.is_file() and read_json_object(plan_file) != plan:
        raise UsageError(
            f"{out}: holds an unfinished preparation with other settings or sources; delete it, or choose another"
        )
    remove_leftovers(out)
    write_atomically(plan_file, to_strict_json(plan))


def remove_leftovers(out: Path) -> None:
    """Deletes temporary files of processes that were killed."""
    for folder in (out, out / WORK_FOLDER, out / WORK_FOLDER / TOKENIZER_FOLDER):
        for path in folder.glob(".*.tmp-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _finish(out: Path, plan: dict[str, Any], results: list[Facts], dtype: str) -> None:
    splits: dict[str, Any] = {}
    for split in SPLITS:
        shards = [s for result in results for s in result["shards"] if s["split"] == split]
        sums = {key: sum(s[key] for s in shards) for key in ("tokens", "documents", "bytes")}
        kept = [{k: v for k, v in s.items() if k not in ("split", "file_bytes")} for s in shards]
        splits[split] = sums | {"shards": kept}
    if not any(split["tokens"] for split in splits.values()):
        raise DataError(f"{', '.join(plan['source'])}: no text found, so there is nothing to store")
    reasons = sorted({reason for result in results for reason in result["skipped"]})
    manifest = {
        "store_format": STORE_FORMAT,
        "tokenizer": plan["tokenizer"],
        "dtype": dtype,
        "splits": splits,
        "source": plan["source"],
        "split_rule": plan["split_rule"],
        "documents": plan["documents"],
        "skipped": {reason: sum(r["skipped"].get(reason, 0) for r in results) for reason in reasons},
        "plan_sha256": _plan_hash(plan),
    }
    remove_leftovers(out)
    shutil.rmtree(out / TOKENIZER_FOLDER, ignore_errors=True)
    shutil.copytree(out / WORK_FOLDER / TOKENIZER_FOLDER, out / TOKENIZER_FOLDER)
    flush_folder(out)
    write_atomically(out / MANIFEST, to_strict_json(manifest, indent=1))
