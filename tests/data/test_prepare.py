"""Preparation: the same store for any number of workers and any number of interruptions."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fromscratch.data.documents import DocumentRule
from fromscratch.data.encode import EncodePart
from fromscratch.data.engines import Task, WorkerProcesses
from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.scan import documents_of
from fromscratch.data.store import TokenStore
from fromscratch.data.verify import verify_store
from fromscratch.errors import DataError, UsageError
from fromscratch.sources import Files
from fromscratch.sources.base import TextsPart
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.tokenizers.gpt2 import GPT2Tokenizer
from fromscratch.tokenizers.loading import load
from tests.command import run_command
from tests.data.helpers import NUMBERED_TEXTS, content_of, interrupt_after, store_of, store_of_files, texts_in

RULE = DocumentRule(min_characters=30, deduplicate=True)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The store of the corpus, prepared without interruption in one process."""
    return store_of_files(corpus, tmp_path_factory.mktemp("whole") / "store")


@pytest.fixture(scope="module")
def deduplicated(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The same without duplicates and short documents."""
    return store_of_files(corpus, tmp_path_factory.mktemp("deduplicated") / "store", documents=RULE)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_worker_processes_make_the_same_store_as_this_process(
    corpus: Path, deduplicated: TokenStore, tmp_path: Path, workers: int
) -> None:
    store = store_of_files(corpus, tmp_path / "store", documents=RULE, engine=WorkerProcesses(workers, load))
    assert content_of(store.path) == content_of(deduplicated.path)


def test_short_and_repeated_documents_are_left_out_and_counted(deduplicated: TokenStore) -> None:
    assert sorted(texts_in(deduplicated)) == sorted(text for text in NUMBERED_TEXTS if len(text) >= 30)
    assert deduplicated.manifest.skipped["duplicate"] > 0
    assert deduplicated.manifest.skipped["too short"] > 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20))
def test_a_store_gives_back_every_document(texts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "store"
    shutil.rmtree(out, ignore_errors=True)
    if not any(texts):
        with pytest.raises(DataError, match="no text found"):
            store_of(texts, out)
        return
    store = store_of(texts, out)
    assert sorted(texts_in(store)) == sorted(text for text in texts if text)
    assert store.manifest.skipped.get("empty", 0) == texts.count("")
    assert verify_store(store).problems == []


def test_the_books_come_back_byte_for_byte(shared_data: Path, gpt2: GPT2Tokenizer, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    file = shared_data / "books" / "000_00000.parquet"
    store = prepare_store([Files(file)], gpt2, tmp_path / "books", rule=SplitRule(0.01))
    decoded = [gpt2.decode(ids) for split in ("train", "validation") for ids in documents_of(store.split(split), 50256)]
    assert sorted(decoded) == sorted(pq.read_table(file, columns=["text"]).column(0).to_pylist())


def test_b19_b21_the_hostile_file_is_text_and_nothing_else(
    shared_data: Path, gpt2: GPT2Tokenizer, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    file = shared_data / "books" / "hostile.parquet"
    store = prepare_store([Files(file)], gpt2, tmp_path / "hostile", rule=SplitRule(0.0))
    texts = [text for text in pq.read_table(file, columns=["text"]).column(0).to_pylist() if text]
    assert [gpt2.decode(ids) for ids in documents_of(store.split("train"), 50256)] == texts
    assert store.manifest.skipped == {"empty": 1, "null": 1}
    assert verify_store(store).problems == []


def test_f24_an_interrupted_preparation_redoes_only_the_parts_that_were_not_done(
    corpus: Path, whole: TokenStore, tmp_path: Path
) -> None:
    out = tmp_path / "interrupted"
    victim = corpus / "002_00000.parquet"
    good = victim.read_bytes()
    interrupted = interrupt_after(2, lambda: store_of_files(corpus, out))
    assert interrupted
    records = sorted((out / ".preparing").glob("part-*.json"))
    shards = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert len(records) == 2
    assert not (out / "manifest.json").exists()
    assert victim.read_bytes() == good
    store_of_files(corpus, out)
    assert content_of(out) == content_of(whole.path)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards  # good output was left alone


def test_f24_a_record_whose_shard_is_gone_or_short_is_redone(corpus: Path, whole: TokenStore, tmp_path: Path) -> None:
    out = tmp_path / "interrupted"
    interrupt_after(3, lambda: store_of_files(corpus, out))
    first, second, *_ = sorted(out.glob("train-*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:300])
    (out / ".train-00009-000.safetensors.tmp-1").write_bytes(b"left by the dead")
    store_of_files(corpus, out)
    assert content_of(out) == content_of(whole.path)


@pytest.mark.parametrize("attempt", range(3))
def test_f24_kill_9_at_a_random_moment_and_finishing_gives_the_same_store(
    corpus: Path, whole: TokenStore, tmp_path: Path, attempt: int
) -> None:
    out = tmp_path / "killed"
    options = ("--tokenizer", "bytes", "--validation", "0.3", "--workers", "2", "-q")
    arguments = ("data", "prepare", str(corpus), "--out", str(out), *options)
    process = subprocess.Popen([sys.executable, "-m", "fromscratch", *arguments])
    generator = random.Random(attempt)
    while not (out / ".preparing").is_dir() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(generator.uniform(0.0, 1.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run_command(*arguments)
    assert done.code == 0, done.err
    assert content_of(out) == content_of(whole.path)


def test_workers_of_a_killed_preparation_end_too(corpus: Path, tmp_path: Path) -> None:
    arguments = ("data", "prepare", str(corpus), "--out", str(tmp_path / "x"), "--tokenizer", "bytes", "--workers", "2")
    process = subprocess.Popen([sys.executable, "-m", "fromscratch", *arguments], stderr=subprocess.DEVNULL)
    workers: list[int] = []
    while not workers and process.poll() is None:
        workers = _children_of(process.pid)
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [worker for worker in workers if Path(f"/proc/{worker}").exists()] == []


def _children_of(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in listed.read_text().split()] if listed.exists() else []


def _die(*_arguments: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_reported_with_its_part(corpus: Path, tmp_path: Path) -> None:
    engine = WorkerProcesses(1, load)
    BytesTokenizer().save(tmp_path / "tokenizer")
    from fromscratch.data.engines.processes import WorkerError

    with engine.started(tmp_path / "tokenizer") as run, pytest.raises(WorkerError, match=r"died .* at the part"):
        list(run(_die, [Task(0, TextsPart("the part", ("x",)))]))
    assert multiprocessing.active_children() == []


def test_a_preparation_under_way_is_not_disturbed(corpus: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    interrupt_after(1, lambda: store_of_files(corpus, out))
    with (out / ".preparing" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="being prepared by another process"):
            store_of_files(corpus, out)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        store_of(NUMBERED_TEXTS, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_too_little_disk_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(UsageError, match=r"needs about .* GB"):
        store_of(NUMBERED_TEXTS, tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.safetensors"))


def test_shards_are_bounded_and_end_at_documents(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    job = EncodePart(tmp_path, work, SplitRule(0.0), DocumentRule(), max_shard_tokens=1_000)
    facts = job(Task(0, TextsPart("texts", tuple(NUMBERED_TEXTS))), BytesTokenizer())
    assert all(shard["tokens"] <= 1_000 for shard in facts["shards"])
    assert sum(shard["documents"] for shard in facts["shards"]) == len(NUMBERED_TEXTS)
    assert len({shard["file"] for shard in facts["shards"]}) == len(facts["shards"]) > 10


def test_the_first_of_identical_documents_stays_in_the_order_of_the_corpus(tmp_path: Path) -> None:
    rule = DocumentRule(deduplicate=True)
    for name, texts in (("b.jsonl", ["two", "one", "two"]), ("a.jsonl", ["one", "three", "one"])):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    store = store_of_files(tmp_path, tmp_path.parent / "unique", validation=0.0, documents=rule)
    assert texts_in(store) == ["one", "three", "two"]
    assert store.manifest.skipped == {"duplicate": 3}


@pytest.mark.parametrize("hashes_per_slice", [1, 7, 1_000])
def test_duplicates_are_the_same_however_few_hashes_are_compared_at_once(tmp_path: Path, hashes_per_slice: int) -> None:
    from fromscratch.data.deduplicate import HashPart, mark_duplicates, read_duplicates

    generator = random.Random(1)
    parts = [tuple(str(generator.randrange(30)) for _ in range(20)) for _ in range(5)]
    for index, texts in enumerate(parts):
        HashPart(tmp_path, DocumentRule())(Task(index, TextsPart("p", texts)), BytesTokenizer())
    mark_duplicates(tmp_path, len(parts), hashes_per_slice=hashes_per_slice)
    seen: set[str] = set()
    for index, texts in enumerate(parts):
        expected = []
        for text in texts:
            expected.append(text in seen)
            seen.add(text)
        assert read_duplicates(tmp_path, index).tolist() == expected


def test_the_summary_says_what_was_made_and_skipped(corpus: Path, tmp_path: Path) -> None:
    arguments = ("data", "prepare", corpus, "--out", tmp_path / "s", "--tokenizer", "bytes", "--min-characters", 30)
    done = run_command(*arguments, "--json", "--workers", 2)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["tokens"] == sum(split["tokens"] for split in facts["splits"].values())
    assert facts["tokens_per_byte"] == pytest.approx(facts["tokens"] / facts["bytes"])
    assert facts["skipped"]["too short"] > 0
    assert facts["bytes_per_second"] > 0
    again = run_command(*arguments)
    assert again.code == 0
    assert "nothing was left to do" in again.out


def test_a_tokenizer_is_learnt_from_what_is_not_held_out_and_a_restart_learns_the_same(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    run = partial(run_command, "data", "prepare", corpus, "--out", out, "--tokenizer", "train:300", "--workers", 1)
    assert run().code == 0
    done = run()
    assert done.code == 0, done.err
    assert json.loads((out / "manifest.json").read_text())["tokenizer"]["vocab_size"] == 300


def test_ray_makes_the_same_store(corpus: Path, whole: TokenStore, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fromscratch[cluster]'")
    script = Path(__file__).with_name("ray_trial.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(corpus), str(tmp_path / "ray")],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["nodes"] == 2
    assert content_of(tmp_path / "ray") == content_of(whole.path)
