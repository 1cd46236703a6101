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

from fromscratch.data.prepare import SplitRule, prepare_store
from fromscratch.data.store import TokenStore, open_store
from fromscratch.errors import UsageError
from fromscratch.hub import requests
from fromscratch.hub.downloads import download_file
from fromscratch.hub.names import dataset_name
from fromscratch.hub.requests import HubError, ask_hub
from fromscratch.sources import open_source
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.command import refused, run_command
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
SAMPLE = "sample/10BT/000_00000.parquet"
SOURCE = "hf://me/texts?name=sample-10BT"
TEXTS = [f"document {number} of the sample" for number in range(50)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A dataset with a card and two configurations."""
    folder = tmp_path_factory.mktemp("dataset")
    sample = write_parquet(folder / "sample.parquet", TEXTS).read_bytes()
    other = write_parquet(folder / "other.parquet", ["not in the sample"]).read_bytes()
    return {"README.md": CARD.encode(), "data/a/000.parquet": other, SAMPLE: sample}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with that dataset, which this process uses; waits between attempts are short."""
    monkeypatch.setattr(requests, "FIRST_WAIT_SECONDS", 0.01)
    with HubServer({"me/texts": dict(files)}) as server:
        server.connect(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A store to push, which no test changes."""
    return store_of(TEXTS, tmp_path_factory.mktemp("mine") / "mine")


def prepare(out: Path) -> TokenStore:
    """Prepares a configuration of the dataset in this process."""
    return prepare_store([open_source(SOURCE)], BytesTokenizer(), out, rule=SplitRule(0.01))


def test_a_configuration_of_a_dataset_becomes_a_store_and_is_downloaded_once(hub: HubServer, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "store", "--tokenizer", "bytes", "--workers", 1, "--json", "-q")
    done = command("data", "prepare", SOURCE, *arguments, env=hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == [SOURCE]
    assert sorted(texts_in(open_store(tmp_path / "store"))) == sorted(TEXTS)
    assert content_of(prepare(tmp_path / "second").path) == content_of(tmp_path / "store")
    assert hub.downloads[SAMPLE] == 1
    assert hub.downloads["data/a/000.parquet"] == 0


@pytest.mark.parametrize("kind", ["cut", "short", "500", "429"])
def test_f25_a_download_that_fails_for_a_while_is_finished(hub: HubServer, tmp_path: Path, kind: str) -> None:
    hub.faults[SAMPLE] = Fault(kind, times=2)
    assert sorted(texts_in(prepare(tmp_path / "store"))) == sorted(TEXTS)
    assert hub.faults[SAMPLE].times == 0


def test_f25_a_large_download_goes_on_where_it_was_cut(hub: HubServer) -> None:
    large = os.urandom(24 << 20)  # the Hub's library keeps what came in steps of 10 MiB
    hub.repositories["me/texts"]["large.parquet"] = large
    hub.faults["large.parquet"] = Fault("cut", times=1)
    assert download_file(dataset_name("hf://me/texts"), "large.parquet").read_bytes() == large
    assert hub.ranges == ["large.parquet"]


def test_f25_a_download_that_never_works_names_the_file_and_no_token(hub: HubServer, tmp_path: Path) -> None:
    hub.faults[SAMPLE] = Fault("500", times=99)
    url = f"/datasets/me/texts/resolve/main/{SAMPLE}: failed after 5 attempts (the Hub answered 500)"
    errors = refused("data", "prepare", SOURCE, "--out", tmp_path / "store", "--tokenizer", "bytes", code=1, says=url)
    assert TOKEN not in errors
    assert not (tmp_path / "store").exists()


def test_b31_offline_names_what_is_missing_and_where_at_once(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.connect(monkeypatch, tmp_path / "home", offline=True)
    arguments = ("data", "prepare", SOURCE, "--out", tmp_path / "store", "--tokenizer", "bytes")
    assert str(tmp_path / "home") in refused(*arguments, code=2, says="hf://me/texts: not in the cache")
    assert hub.requests == []


def test_b31_offline_with_a_full_cache_works(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "store")
    hub.requests.clear()
    hub.connect(monkeypatch, tmp_path / "home", offline=True)
    assert content_of(prepare(tmp_path / "second").path) == content_of(tmp_path / "store")
    assert hub.requests == []


def test_a_store_is_pushed_pulled_and_used_by_name(hub: HubServer, mine: TokenStore, tmp_path: Path) -> None:
    pushed = run_command("data", "push", mine.path, "hf://me/tokens", "--license", "cc0-1.0")
    assert pushed.code == 0, pushed.err
    card = hub.repositories["me/tokens"]["README.md"].decode()
    assert "license: cc0-1.0" in card
    assert "| train |" in card
    assert hub.commits == 1
    pulled = run_command("data", "pull", "hf://me/tokens", "--out", tmp_path / "theirs")
    assert pulled.code == 0, pulled.err
    assert content_of(tmp_path / "theirs") == content_of(mine.path)
    shown = run_command("data", "verify", "hf://me/tokens", "--json")
    assert json.loads(shown.out)["valid"], shown.err


def test_f27_a_push_that_fails_changes_nothing_and_can_be_repeated(hub: HubServer, mine: TokenStore) -> None:
    hub.faults["commit"] = Fault("403", times=1)
    errors = refused("data", "push", mine.path, "hf://me/tokens", code=2, says="hf://me/tokens: the Hub answered 403")
    assert TOKEN not in errors
    assert hub.repositories["me/tokens"] == {}
    assert run_command("data", "push", mine.path, "hf://me/tokens").code == 0
    assert "manifest.json" in hub.repositories["me/tokens"]


def test_a_store_is_pulled_over_nothing(
    hub: HubServer, mine: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command("data", "push", mine.path, "hf://me/tokens").code == 0
    for name in ("app", "disk", "cwd"):
        (tmp_path / name).mkdir()
    (tmp_path / "app" / "main.py").write_text("mine")
    (tmp_path / "link").symlink_to("disk/store")
    (tmp_path / "file").symlink_to("app/main.py")
    monkeypatch.chdir(tmp_path / "cwd")
    hub.downloads.clear()
    for out, message in (("../app", "holds main.py"), ("../file", "is a file"), (".", "is the current folder")):
        refused("data", "pull", "hf://me/tokens", "--out", out, code=2, says=f"--out {out}: ")
        assert message in refused("data", "pull", "hf://me/tokens", "--out", out, code=2, says="nothing was written")
    assert (tmp_path / "app" / "main.py").read_text() == "mine" and not hub.downloads
    for _ in range(2):
        done = run_command("data", "pull", "hf://me/tokens", "--out", tmp_path / "link")
        assert done.code == 0, done.err
    assert (tmp_path / "link").is_symlink() and content_of(tmp_path / "disk" / "store") == content_of(mine.path)
    assert [path.name for path in tmp_path.rglob(".*") if path.suffix != ".json" and "home" not in path.parts] == []


def test_processes_that_pull_at_once_download_once(hub: HubServer, mine: TokenStore, tmp_path: Path) -> None:
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
    refused(
        "data", "pull", "hf://me/nothing", "--out", tmp_path / "x", code=2, says="hf://me/nothing: the Hub answered"
    )
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


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nosuchhost.invalid"])
def test_without_a_network_it_says_so_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """In a process of its own, because the Hub's library reads its settings when it is imported."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    script = (
        "import time; from fromscratch.hub.downloads import *; from fromscratch.hub.requests import HubError\n"
        "import huggingface_hub\n"
        "began = time.monotonic()\n"
        "for ask in (lambda: download_model('hf://owner/name'), lambda: list_files(model_name('owner/name'))):\n"
        "    try: ask()\n"
        "    except HubError as error: print(error)\n"
        "print(time.monotonic() - began)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    *messages, seconds = done.stdout.splitlines()
    assert len(messages) == 2, done.stderr
    assert all(f"no connection to {endpoint}, and not in the cache" in message for message in messages)
    assert float(seconds) < 10 and "Retry" not in done.stderr


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
    monkeypatch.setattr(requests, "is_offline", lambda: False)
    waits: list[float] = []
    with pytest.raises(HubError, match=rf"^x: failed after 5 attempts \({reason}.*\); try again later$") as caught:
        ask_hub("x", failing(error), sleep=waits.append)
    assert TOKEN not in str(caught.value)
    assert len(waits) == 4 and all(1.3 < later / earlier < 3.0 for earlier, later in pairwise(waits)), waits


def test_the_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "is_offline", lambda: False)
    for asked, seconds in (("7", 7.0), ("1.5", 1.5), ("9999", 60.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)):
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
    monkeypatch.setattr(requests, "is_offline", lambda: False)
    waits: list[float] = []
    with pytest.raises(UsageError, match=says) as caught:
        ask_hub("x", failing(error), sleep=waits.append)
    assert waits == [] and TOKEN not in str(caught.value)
