"""Whatever bytes a store, a run or a prompt consists of: a documented exit code, one message, no trace."""

import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fromscratch.errors import DataError
from fromscratch.formats.checkpoints import TrainingState, read_state
from fromscratch.training.saving import CheckpointSaver
from tests.command import DOCUMENTED_CODES, run_command
from tests.small import write_run_file

FEW = settings(max_examples=25)
MANY = settings(max_examples=100)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from([2**64, -1, 10**400, "", "../x", "\0", "a" * 300, [], {}, [[]], {"a": {}}]),
)


class EvenClock(threading.local):
    """Each thread finds that half a second has passed since it looked last."""

    seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.5
        return self.seconds


@contextmanager
def same_bytes_every_time() -> Iterator[None]:
    """What is trained in this block consists of the same bytes every time, so that the same damage is done to it."""
    collect = CheckpointSaver.collect
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "perf_counter", EvenClock())
        patched.setattr(os, "getpid", lambda: 1)
        patched.setattr(CheckpointSaver, "collect", lambda saver, *, wait: collect(saver, wait=True))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store and a trained run, the current folder of every example."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_run_file(folder)
    with same_bytes_every_time():
        trained = run_command("train", folder / "small.toml", "--runs-dir", folder / "runs", "--quiet")
    assert trained.code == 0, trained.err
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        yield folder


def is_answered(*arguments: str) -> int:
    """Whatever the code is, it is documented and was foreseen: nothing advises to look at a trace."""
    answer = run_command(*arguments)
    assert answer.code in DOCUMENTED_CODES, answer
    assert "Traceback" not in answer.err and "--debug" not in answer.err, answer.err
    assert answer.code in (0, 75) or answer.err, answer
    return answer.code


def changed(value: Any, chance: random.Random, new: Any) -> Any:
    """JSON with one thing at random replaced by something else, or left out."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(value[key], chance, new)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        return [changed(item, chance, new) if i == place else item for i, item in enumerate(value)]
    return new


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut off or added."""
    spoilt = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        if spoilt:
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
    if chance.random() < 0.3:
        del spoilt[chance.randrange(len(spoilt) + 1) :]
    return bytes(spoilt)


@FEW
@given(seed=st.integers(0, 10**6), new=VALUES)
def test_b15_any_manifest_of_a_store(place: Path, seed: int, new: Any) -> None:
    manifest = json.loads(Path("store/manifest.json").read_text())
    shutil.copytree("store", "spoilt", dirs_exist_ok=True)
    Path("spoilt/manifest.json").write_text(json.dumps(changed(manifest, random.Random(seed), new)))
    is_answered("data", "verify", "spoilt")
    is_answered("train", "small.toml", "--name", "f", "--set", "data.store=spoilt", "--set", "train.seed=-1")
    is_answered("eval", "loss", "small", "--store", "spoilt", "--tokens", "64")


@FEW
@given(seed=st.integers(0, 10**6))
def test_b15_b26_any_shard_or_tokenizer(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    shutil.copytree("store", "spoilt", dirs_exist_ok=True)
    file = chance.choice(sorted(path for path in Path("spoilt").rglob("*") if path.is_file()))
    before = file.read_bytes()
    file.write_bytes(damaged(before[:300], chance) + before[300:])
    assert is_answered("data", "verify", "spoilt") in ((0, 3) if "tokenizer" in file.parts else (0, 2, 3))
    is_answered("eval", "loss", "small", "--store", "spoilt", "--tokens", "64")


@FEW
@given(seed=st.integers(0, 10**6))
def test_f7_any_file_of_a_run(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    shutil.rmtree("runs/spoilt", ignore_errors=True)
    shutil.copytree("runs/small", "runs/spoilt", symlinks=True)
    small = [
        p for p in sorted(Path("runs/spoilt").rglob("*")) if p.is_file() and p.suffix in (".json", ".jsonl", ".toml")
    ]
    file = chance.choice(small)
    file.write_bytes(damaged(file.read_bytes(), chance))
    for verb in ("list", "show spoilt", "verify spoilt", "clean spoilt"):
        is_answered("runs", *verb.split())
    is_answered("generate", "spoilt", "--tokens", "1")


@MANY
@given(seed=st.integers(0, 10**6), new=VALUES)
def test_any_state_of_a_checkpoint(place: Path, seed: int, new: Any) -> None:
    state = json.loads(Path("runs/small/checkpoints/latest/state.json").read_text())
    Path("state.json").write_text(json.dumps(changed(state, random.Random(seed), new)))
    try:
        found = read_state(Path())
    except DataError as error:
        assert str(error).startswith("state.json: ")
    else:
        assert isinstance(found.step, int) and found.is_improvement(0.0) in (True, False)
        assert found.mean_recent_loss is None or isinstance(found.mean_recent_loss, float)
        assert set(vars(found)) == set(vars(TrainingState()))


@FEW
@given(lines=st.lists(st.one_of(st.binary(max_size=40), VALUES.map(lambda v: json.dumps({"step": v}).encode()))))
def test_b40_any_records(place: Path, lines: list[bytes]) -> None:
    run = Path("runs/records")
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    shutil.copy("runs/small/run.toml", run)
    for name in ("metrics.jsonl", "events.jsonl", "status.json"):
        (run / name).write_bytes(b"\n".join(lines))
    assert is_answered("runs", "list", "--json") == 0
    assert is_answered("runs", "show", "records") == 0
    shutil.rmtree(run)


SETTINGS = ["temperature", "top-k", "top-p", "min-p", "repetition-penalty", "seed", "n"]
NUMBERS = st.one_of(st.integers(-2, 300), st.floats(), st.text(max_size=4))


@FEW
@given(
    prompt=st.text(st.characters(), max_size=40),
    options=st.dictionaries(
        st.sampled_from(SETTINGS),
        NUMBERS,
        max_size=4,
    ),
)
def test_b23_b24_any_prompt_and_settings(place: Path, prompt: str, options: dict[str, Any]) -> None:
    words = [f"--{name}={value}" for name, value in options.items()]
    assert is_answered("generate", "small", "--tokens", "2", f"--prompt={prompt}", "--json", *words) in (0, 2)


@FEW
@given(words=st.lists(st.text(st.characters(), max_size=12), max_size=4))
def test_any_words(place: Path, words: list[str]) -> None:
    for verb in ("list", "show", "verify", "clean"):
        is_answered("runs", verb, "--", *words)
