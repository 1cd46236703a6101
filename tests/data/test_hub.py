"""Datasets and stores on the Hub, against a local server that speaks its protocol."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from fromscratch.data.store import open_store
from fromscratch.errors import UsageError
from fromscratch.hub.names import dataset_name
from fromscratch.hub.requests import HubError, ask_hub
from tests.data.helpers import command, content_of, store_of, texts_in, write_parquet
from tests.hub_server import TOKEN, Fault, HubServer

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
# Texts
"""
TEXTS = [f"document {number} of the sample" for number in range(50)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    sample = write_parquet(tmp_path / "sample.parquet", TEXTS).read_bytes()
    other = write_parquet(tmp_path / "other.parquet", ["not in the sample"]).read_bytes()
    files = {"README.md": CARD.encode(), "data/a/000.parquet": other, "sample/10BT/000_00000.parquet": sample}
    with HubServer({"me/texts": files}) as server:
        yield server


def prepare(hub: HubServer, tmp_path: Path, *more: object, **env: str) -> subprocess.CompletedProcess[str]:
    arguments = ("--out", tmp_path / "store", "--tokenizer", "bytes", "--workers", 1, "--json", "-q")
    source = "hf://me/texts?name=sample-10BT"
    return command("data", "prepare", source, *arguments, *more, env=hub.environment(tmp_path / "home") | env)


def test_a_configuration_of_a_dataset_becomes_a_store_and_is_downloaded_once(hub: HubServer, tmp_path: Path) -> None:
    done = prepare(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == ["hf://me/texts?name=sample-10BT"]
    assert sorted(texts_in(open_store(tmp_path / "store"))) == sorted(TEXTS)
    again = prepare(hub, tmp_path, "--out", tmp_path / "second")
    assert again.returncode == 0, again.stderr
    assert hub.downloads["sample/10BT/000_00000.parquet"] == 1
    assert hub.downloads["data/a/000.parquet"] == 0


@pytest.mark.parametrize("kind", ["cut", "short", "500", "429"])
def test_f25_a_download_that_fails_for_a_while_is_finished(hub: HubServer, tmp_path: Path, kind: str) -> None:
    hub.faults["sample/10BT/000_00000.parquet"] = Fault(kind, times=2)
    done = prepare(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(texts_in(open_store(tmp_path / "store"))) == sorted(TEXTS)


def test_f25_a_large_download_goes_on_where_it_was_cut(hub: HubServer, tmp_path: Path) -> None:
    large = os.urandom(32 << 20)  # the Hub's library keeps what came in steps of 10 MiB
    hub.repositories["me/texts"]["large.parquet"] = large
    hub.faults["large.parquet"] = Fault("cut", times=1)
    script = (
        "from fromscratch.hub.downloads import *; print(download_file(HubName('dataset', 'me/texts'), 'large.parquet'))"
    )
    env = {**os.environ, **hub.environment(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).read_bytes() == large
    assert hub.ranges == ["large.parquet"]


def test_f25_a_download_that_never_works_names_the_file_and_no_token(hub: HubServer, tmp_path: Path) -> None:
    hub.faults["sample/10BT/000_00000.parquet"] = Fault("500", times=99)
    done = prepare(hub, tmp_path)
    assert done.returncode == 1
    assert "/datasets/me/texts/resolve/main/sample/10BT/000_00000.parquet: failed after 5 attempts" in done.stderr
    assert TOKEN not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_b31_offline_names_what_is_missing_and_where_at_once(hub: HubServer, tmp_path: Path) -> None:
    done = prepare(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "hf://me/texts" in done.stderr
    assert str(tmp_path / "home") in done.stderr
    assert hub.requests == []


def test_b31_offline_with_a_full_cache_works(hub: HubServer, tmp_path: Path) -> None:
    assert prepare(hub, tmp_path).returncode == 0
    hub.requests.clear()
    done = prepare(hub, tmp_path, "--out", tmp_path / "second", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert content_of(tmp_path / "second") == content_of(tmp_path / "store")
    assert hub.requests == []


def test_a_store_is_pushed_pulled_and_used_by_name(hub: HubServer, tmp_path: Path) -> None:
    store_of(TEXTS, tmp_path / "mine")
    env = hub.environment(tmp_path / "home")
    pushed = command("data", "push", tmp_path / "mine", "hf://me/tokens", "--license", "cc0-1.0", env=env)
    assert pushed.returncode == 0, pushed.stderr
    card = hub.repositories["me/tokens"]["README.md"].decode()
    assert "license: cc0-1.0" in card
    assert "| train |" in card
    assert hub.commits == 1
    pulled = command("data", "pull", "hf://me/tokens", "--out", tmp_path / "theirs", env=env)
    assert pulled.returncode == 0, pulled.stderr
    assert content_of(tmp_path / "theirs") == content_of(tmp_path / "mine")
    shown = command("data", "verify", "hf://me/tokens", "--json", env=env)
    assert json.loads(shown.stdout)["valid"], shown.stderr


def test_f27_a_push_that_fails_changes_nothing_and_can_be_repeated(hub: HubServer, tmp_path: Path) -> None:
    store_of(TEXTS, tmp_path / "mine")
    env = hub.environment(tmp_path / "home")
    hub.faults["commit"] = Fault("403", times=1)
    failed = command("data", "push", tmp_path / "mine", "hf://me/tokens", env=env)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert TOKEN not in failed.stderr
    assert hub.repositories["me/tokens"] == {}
    assert command("data", "push", tmp_path / "mine", "hf://me/tokens", env=env).returncode == 0
    assert "manifest.json" in hub.repositories["me/tokens"]


def test_processes_that_pull_at_once_download_once(hub: HubServer, tmp_path: Path) -> None:
    mine = store_of(TEXTS, tmp_path / "mine")
    files = {path.relative_to(mine.path).as_posix(): path for path in mine.path.rglob("*") if path.is_file()}
    hub.repositories["me/tokens"] = {name: path.read_bytes() for name, path in files.items()}
    arguments = [sys.executable, "-m", "fromscratch", "data", "pull", "hf://me/tokens", "--out", "pulled"]
    env = {**os.environ, **hub.environment(tmp_path / "home")}
    pulls = [subprocess.Popen(arguments, cwd=tmp_path, env=env, stderr=subprocess.PIPE) for _ in range(3)]
    for pull in pulls:
        _, errors = pull.communicate(timeout=60)
        assert pull.returncode == 0, errors.decode()
    assert content_of(tmp_path / "pulled") == content_of(mine.path)
    assert {hub.downloads[name] for name in files if name != "manifest.json"} == {1}


def test_a_store_that_is_not_there_is_said_so(hub: HubServer, tmp_path: Path) -> None:
    done = command("data", "pull", "hf://me/nothing", "--out", tmp_path / "x", env=hub.environment(tmp_path / "home"))
    assert done.returncode == 2
    assert "hf://me/nothing" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://one", "hf://a/b/c", "hf://../etc", "hf://a/b?nme=x", "hf://a/b@", "hf://a/b@x y", "hf://a/b\n"],
)
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        dataset_name(name, allowed=("name", "revision"))


@pytest.mark.parametrize(
    "name", ["hf://a/b@v1", "hf:/a/b@v1", "hf://datasets/a/b@v1/", "hf://a/b?revision=v1", "a/b@v1"]
)
def test_one_repository_and_revision_however_they_are_written(name: str) -> None:
    parsed = dataset_name(name, allowed=("revision",))
    assert (str(parsed), parsed.revision) == ("hf://a/b", "v1")
    assert dataset_name("hf://a/b").revision == "main"
    with pytest.raises(UsageError, match="unknown parameter 'revision'"):
        dataset_name(name)


def failing(error: Exception) -> Callable[[], None]:
    """A request that always fails, in the same way."""

    def fail() -> None:
        raise error

    return fail


def test_offline_nothing_is_tried_again() -> None:
    waits: list[float] = []
    with pytest.raises(UsageError, match="not in the cache"):
        ask_hub("x", failing(ConnectionError("no")), sleep=waits.append)
    assert waits == []


def answer(status: int, **headers: str) -> Exception:
    """The error of ``huggingface_hub`` for an answer of the Hub."""
    response = SimpleNamespace(status_code=status, headers=headers, request=None)
    return HfHubHTTPError(f"{status} for {TOKEN}", response=cast("Any", response))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError(TOKEN), "no connection to http.*: ConnectionError"),
        (answer(503), "the Hub answered 503"),
        (OSError("the content does not match its SHA-256"), "OSError: the content does not match"),
    ],
)
def test_waits_grow_between_attempts_and_the_last_error_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    waits: list[float] = []
    with pytest.raises(HubError, match=rf"^x: failed after 5 attempts \({reason}.*\); try again later$") as caught:
        ask_hub("x", failing(error), sleep=waits.append)
    assert TOKEN not in str(caught.value)
    assert len(waits) == 4 and all(1.3 < later / earlier < 3.0 for earlier, later in pairwise(waits)), waits


def test_the_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for asked, seconds in (("7", 7.0), ("9999", 60.0)):
        waits: list[float] = []
        with pytest.raises(HubError):
            ask_hub("x", failing(answer(429, **{"Retry-After": asked})), sleep=waits.append)
        assert waits == [seconds] * 4


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(404), "^x: the Hub answered 404: no such repository"),
        (LocalTokenNotFoundError("no"), "^x: needs a token; log in"),
        (HFValidationError("Cannot have -- in a--b"), "^x: not a name that the Hub allows"),
    ],
)
def test_what_the_user_must_change_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    waits: list[float] = []
    with pytest.raises(UsageError, match=says) as caught:
        ask_hub("x", failing(error), sleep=waits.append)
    assert waits == [] and TOKEN not in str(caught.value)
