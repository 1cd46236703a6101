"""Saves in the background: what training waits for, and what is left when one fails or is killed."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fromscratch.errors import EXIT_CRASH, DataError, FromScratchError
from fromscratch.files import sha256_of, verify_folder
from fromscratch.formats.checkpoints import Contents, TrainingState
from fromscratch.formats.tensor_files import write_tensors
from fromscratch.optim.composite import CompositeOptimizer
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import leftovers_in, newest_valid
from fromscratch.training.observers import SilentObserver
from fromscratch.training.parallelism import SingleProcess
from fromscratch.training.saving import CheckpointSaver, HostBuffers, SaveRequest
from tests.conftest import REPOSITORY
from tests.small import SMALL_RUN, run_small, write_run_file
from tests.training.in_saves import before_saves, call_in_save, in_background
from tests.training.test_resume import assert_same_end

REQUEST = SaveRequest({"identity": "x"}, (None, None), before_writing=lambda: None)


def events(run: RunDirectory, event: str) -> list[dict[str, Any]]:
    return [record for record in read_records(run.events) if record["event"] == event]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_small(write_run_file(tmp_path_factory.mktemp("untouched")))[0]


def test_tensor_files_are_safetensors_and_their_checksum_is_right(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.0),
        "half": torch.arange(7).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "whole": torch.arange(5),
    }
    facts = write_tensors(tmp_path / "x.safetensors", tensors)
    assert facts == {
        "bytes": (tmp_path / "x.safetensors").stat().st_size,
        "sha256": sha256_of(tmp_path / "x.safetensors"),
    }
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[n], t) and loaded[n].dtype == t.dtype for n, t in tensors.items())


def test_copies_use_the_same_memory_again() -> None:
    a, b = ("x", "a"), ("x", "b")
    buffers, source = HostBuffers(), {a: torch.ones(3), b: torch.zeros(2)}
    first = buffers.copy(source)
    source[a].fill_(7.0)
    assert first[a].tolist() == [1.0, 1.0, 1.0], "a copy, not the tensor itself"
    again = buffers.copy({a: source[a]})
    assert again[a].data_ptr() == first[a].data_ptr() and again[a].tolist() == [7.0] * 3
    assert again.keys() == {a}


def test_training_goes_on_during_a_save_which_holds_the_step_it_began_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: RunDirectory
) -> None:
    at_step_8, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert not in_background() or at_step_8.wait(60), "training waits for the disk"
        fsync(descriptor)

    class Watch(SilentObserver):
        log: list[str]
        sha256_at_5 = ""

        def on_step(self, record: dict[str, Any]) -> None:
            self.log.append(f"step {record['step']}")
            if record["step"] == 8:
                at_step_8.set()

        def on_event(self, event: str, facts: dict[str, Any]) -> None:
            if event == "checkpoint":
                self.log.append(f"checkpoint {facts['step']}")
                if facts["step"] == 5:
                    weights = tmp_path / "runs" / "run" / "checkpoints" / "step-00000005" / "model.safetensors"
                    self.sha256_at_5 = sha256_of(weights)

    watch = Watch()
    watch.log = []
    monkeypatch.setattr(os, "fsync", slow)
    run, summary = run_small(write_run_file(tmp_path), observers=[watch])
    assert summary.outcome == "done"
    assert watch.log.index("step 8") < watch.log.index("checkpoint 5") < watch.log.index("checkpoint 10")
    assert_same_end(untouched, run)
    stopped, _ = run_small(tmp_path / "small.toml", name="stopped", stop_after=5)
    assert watch.sha256_at_5 == sha256_of(stopped.checkpoints / "step-00000005" / "model.safetensors")


def test_one_save_at_a_time_and_without_memory_for_a_copy_it_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (go_on.wait(60), fsync(descriptor))[1])
    model, saver = nn.Linear(3, 3), CheckpointSaver(tmp_path, keep=2)
    optimizer = CompositeOptimizer(torch.optim.AdamW(model.parameters()))

    def contents(step: int) -> Contents:
        found = SingleProcess().gather(model, optimizer, {}, TrainingState(step=step))
        assert found is not None
        return found

    saver.begin(contents(1), REQUEST)
    assert saver.collect(wait=False) is None
    with pytest.raises(AssertionError):
        saver.begin(contents(2), REQUEST)
    go_on.set()
    result = saver.collect(wait=True)
    assert result is not None and not result.error and saver.saved_step == 1

    def no_memory(*_: Any) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(HostBuffers, "copy", no_memory)
    saver.begin(contents(2), REQUEST)
    result = saver.collect(wait=False)
    assert result is not None and not result.error
    saver.close()
    verify_folder(tmp_path / "step-00000002")


def break_disk() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("function", ["fsync", "replace", "mkdir"])
def test_f6_a_failed_save_is_told_and_tried_again_at_the_next_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: RunDirectory, function: str
) -> None:
    call_in_save(monkeypatch, function, 10, break_disk)
    run, summary = run_small(write_run_file(tmp_path))
    (failed,) = events(run, "checkpoint-failed")
    assert failed["step"] == 10 and "Input/output error" in failed["reason"]
    assert [event["step"] for event in events(run, "checkpoint")] == [5, 15, 20]
    assert summary.outcome == "done" and not leftovers_in(run.checkpoints)
    assert_same_end(untouched, run)


def test_f6_a_checkpoint_that_failed_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_run_file(tmp_path, train={**SMALL_RUN["train"], "checkpoint_every": 2, "evaluate_every": 2})
    too_high = ["train.optimizer.learning_rate=4.0", "train.schedule={kind='constant', warmup_steps=20}"]
    _, whole = run_small(file, name="whole", overrides=too_high)
    assert whole.best_step is not None and 2 <= whole.best_step < 18
    call_in_save(monkeypatch, "fsync", whole.best_step, break_disk)
    run, summary = run_small(file, overrides=too_high)
    assert whole.best_step in [event["step"] for event in events(run, "checkpoint-failed")]
    assert summary.best_step is not None and summary.best_step != whole.best_step
    assert (run.checkpoints / "best").resolve().name == f"step-{summary.best_step:08}"
    verify_folder(run.checkpoints / "best")


def test_f1_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power can fail too: what is not flushed may be lost although a later rename is not."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        fsync(descriptor)
        if in_background():
            done.append("flush " + Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def renamed(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        if in_background():
            done.append(f"rename {Path(target).name}")

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    run_small(write_run_file(tmp_path), stop_after=6)
    hidden = f".step-00000005.tmp-{os.getpid()}"
    assert done[:13] == [
        "flush metrics.jsonl",
        "flush model.safetensors",
        "flush optimizer.safetensors",
        "flush state.json",
        f"flush .manifest.json.tmp-{os.getpid()}",
        "rename manifest.json",
        f"flush {hidden}",
        "rename step-00000005",
        "flush checkpoints",
        "rename latest",
        "flush checkpoints",
        "rename best",
        "flush checkpoints",
    ]


def limit_file_size(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Lets this process write only small files in the save of a step: a disk that is full for large ones."""

    def limit(saved_step: int) -> None:
        largest = 30_000 if saved_step == step else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    before_saves(monkeypatch, limit)


@pytest.fixture
def _unlimited() -> Iterator[None]:
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("_unlimited")
def test_f4_no_room_for_a_periodic_save_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: RunDirectory
) -> None:
    limit_file_size(monkeypatch, 10)
    run, summary = run_small(write_run_file(tmp_path))
    (failed,) = events(run, "checkpoint-failed")
    assert failed["step"] == 10 and "it needs" in failed["reason"] and "bytes" in failed["reason"]
    assert summary.outcome == "done" and not leftovers_in(run.checkpoints)
    assert_same_end(untouched, run)


@pytest.mark.usefixtures("_unlimited")
def test_f4_no_room_for_the_last_save_is_an_error_with_the_bytes_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untouched: RunDirectory
) -> None:
    file = write_run_file(tmp_path)
    with monkeypatch.context() as patched:
        limit_file_size(patched, 20)
        with pytest.raises(FromScratchError, match=r"step 20 .*it needs [\d,]+ bytes and [\d,]+ are free") as caught:
            run_small(file)
    assert caught.value.exit_code == EXIT_CRASH
    run = RunDirectory(tmp_path / "runs" / "run")
    status = run.read_status()
    assert status.state == "failed" and "it needs" in status.reason
    assert (run.checkpoints / "latest").readlink().name == "step-00000015" and not leftovers_in(run.checkpoints)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert_same_end(untouched, run_small(file)[0])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where the system lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_f4_a_disk_that_is_really_full(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, untouched: RunDirectory
) -> None:
    filler = tiny_disk / "filler"

    def fill(step: int) -> None:
        if step == 10:
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while file.write(b"x" * 4096):
                    pass
        elif step == 20:
            filler.unlink()

    before_saves(monkeypatch, fill)
    run, summary = run_small(write_run_file(tiny_disk))
    assert summary.outcome == "done"
    assert [event["step"] for event in events(run, "checkpoint-failed")] == [10, 15]
    assert_same_end(untouched, run)  # not one metric is missing either


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What is left of a save that is killed at every call that matters, of a new checkpoint and of a replaced one."""
    command = [sys.executable, "-m", "tests.training.crashing", str(tmp_path_factory.mktemp("crashes"))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["new", "replaced"])
def test_f1_f2_f3_killed_at_any_moment_of_a_save(crashes: list[dict[str, Any]], kind: str) -> None:
    found = [state for state in crashes if state["kind"] == kind]
    assert len(found) > 15 and found[-1]["survived"] and not any(state["survived"] for state in found[:-1])
    old = "step-00000010" if kind == "replaced" else "step-00000005"
    newest = [state["newest_after"] for state in found]
    assert newest == sorted(newest) and newest[0] == old and newest[-1] == "step-00000010"
    for state in found:
        assert not state["leftovers_after"]
        assert state["newest_after"] in state["folders_after"]
        if kind == "new":
            assert state["newest"] == state["newest_after"]
            assert state["links"]["latest"] in state["folders_after"]
    assert found[-1]["links"] == {"latest": "step-00000010", "best": "step-00000010"}
    assert found[-1]["folders_after"] == ["step-00000010"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_f7_f8_whatever_is_wrong_with_a_file_it_is_named_and_the_checkpoint_before_taken(
    tmp_path: Path, file: str, untouched: RunDirectory
) -> None:
    for kind in ("flipped", "truncated", "empty", "deleted"):
        folder = tmp_path / kind
        shutil.copytree(untouched.checkpoints, folder, symlinks=True)
        path = folder / "step-00000020" / file
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 4
        changed = {"flipped": bytes(content), "truncated": bytes(content[: len(content) // 2]), "empty": b""}
        path.write_bytes(changed[kind]) if kind in changed else path.unlink()
        newest, skipped = newest_valid(folder)
        assert newest == folder / "step-00000015"
        assert len(skipped) == 1 and str(path) in skipped[0]


def test_f7_every_bit_of_a_manifest_counts(tmp_path: Path, untouched: RunDirectory) -> None:
    """What only the manifest knows (to which run the weights belong) is as safe as the weights."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(untouched.checkpoints / "step-00000020", folder)
    path, whole = (
        folder / "manifest.json",
        json.loads((untouched.checkpoints / "step-00000020/manifest.json").read_text()),
    )
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = verify_folder(folder)
        except DataError:
            continue
        whole.pop("manifest_sha256", None)
        assert {key: found.get(key) for key in whole} == whole


def test_f7_a_damaged_checkpoint_named_in_a_run_file_is_an_error(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=6)
    weights = run.checkpoints / "step-00000006" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 16
    weights.write_bytes(content)
    with pytest.raises(DataError, match=r"step-00000006/model\.safetensors") as caught:
        run_small(file, name="child", overrides=["train.start_from=run@step-6"])
    assert caught.value.exit_code == 3


def test_f9_a_resume_heeds_no_link(tmp_path: Path, untouched: RunDirectory) -> None:
    file = write_run_file(tmp_path)
    run, _ = run_small(file, stop_after=12)
    (run.checkpoints / "latest").unlink()
    (run.checkpoints / "latest").symlink_to("/etc")
    (run.checkpoints / "best").unlink()
    (run.checkpoints / "best").symlink_to("step-00000099")
    run_small(file)
    assert len(events(run, "link-ignored")) == 2
    assert_same_end(untouched, run)
