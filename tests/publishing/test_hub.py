"""Pushing and pulling through the Hub's protocol, in processes of their own, with a local server."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import TOKEN, Fault, HubServer
from tests.publishing.models import make_loaded

NAME = "me/my-gpt"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_loaded(folder, tied_head=False)
    return folder


def command(*arguments: object, home: Path, hub: HubServer, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(home), **more}
    done = subprocess.run(
        [sys.executable, "-m", "fromscratch", *map(str, arguments)],
        env=environment,
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr
    return done


def test_pushed_pulled_and_used_by_name(hub: HubServer, model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shown = command("publish", model, "--to", f"hf://{NAME}", "--json", home=home, hub=hub)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["uploaded"] is False and hub.commits == 0 and not hub.repositories

    up = ("publish", model, "--to", f"hf://{NAME}", "--yes", "--private", "--collection", "me/mine-1", "--json")
    done = command(*up, home=home, hub=hub)
    assert done.returncode == 0, done.stderr
    files = hub.repositories[NAME]
    assert set(files) == set(json.loads(shown.stdout)["files"]) - {"manifest.json"}
    assert hub.private[NAME] and hub.collections == {"me/mine-1": [NAME]}
    assert not any(TOKEN.encode() in content for content in files.values())
    again = command("publish", model, "--to", f"hf://{NAME}", "--yes", "--json", home=home, hub=hub)
    assert again.returncode == 0 and hub.repositories[NAME] == files

    texts = [
        command("generate", source, "-p", "the", "--tokens", 12, home=home, hub=hub)
        for source in (model, NAME, f"hf://{NAME}")
    ]
    assert {text.returncode for text in texts} == {0}, texts[1].stderr
    assert len({text.stdout for text in texts}) == 1
    offline = command("generate", NAME, "-p", "the", "--tokens", 12, home=home, hub=hub, HF_HUB_OFFLINE="1")
    assert offline.stdout == texts[0].stdout
    imported = command("import", NAME, "--out", "imported", home=home, hub=hub)
    assert imported.returncode == 0, imported.stderr
    assert (home.parent / "imported" / "model.toml").is_file()


def test_f27_an_upload_that_fails_leaves_nothing_and_can_be_repeated(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    hub.faults["commit"] = Fault("403", times=1)
    arguments = ("publish", model, "--to", f"hf://{NAME}", "--format", "custom", "--yes")
    failed = command(*arguments, home=tmp_path / "home", hub=hub)
    assert failed.returncode == 2 and "the Hub answered 403" in failed.stderr
    assert hub.repositories[NAME] == {} and hub.commits == 0
    assert command(*arguments, home=tmp_path / "home", hub=hub).returncode == 0
    assert "modeling_fromscratch.py" in hub.repositories[NAME] and hub.commits == 1


def test_b30_a_wrong_token_is_said_and_not_shown(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.refuses_token = True
    done = command("publish", model, "--to", f"hf://{NAME}", "--yes", home=tmp_path / "home", hub=hub)
    assert done.returncode == 2 and "HF_TOKEN" in done.stderr
    missing = command("publish", model, "--to", f"hf://{NAME}", "--yes", home=tmp_path / "home", hub=hub, HF_TOKEN="")
    assert missing.returncode == 2 and "HF_TOKEN" in missing.stderr


def test_b31_offline_names_what_is_missing_and_where_at_once(hub: HubServer, tmp_path: Path) -> None:
    began = time.monotonic()
    done = command("generate", "gpt2", home=tmp_path / "home", hub=hub, HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and time.monotonic() - began < 30
    assert "openai-community/gpt2" in done.stderr and str(tmp_path / "home") in done.stderr
    assert hub.requests == []


def test_what_the_hub_does_not_have(hub: HubServer, tmp_path: Path) -> None:
    done = command("generate", "me/nothing", home=tmp_path / "home", hub=hub)
    assert done.returncode == 2 and "hf://me/nothing: the Hub answered 404" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "hf://name"], "write it as hf://owner/name"),
        (["--to", "out", "--private"], "--private and --collection need a Hub repository"),
        (["--to", "out", "--format", "onnx"], "must be native or custom"),
        (["--to", "taken"], "holds diary.txt, which this command did not write"),
    ],
)
def test_bad_destinations(hub: HubServer, model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "diary.txt").write_text("mine")
    done = command("publish", model, *arguments, home=tmp_path / "home", hub=hub)
    assert done.returncode == 2 and message in done.stderr
    assert (tmp_path / "taken" / "diary.txt").read_text() == "mine" and not (tmp_path / "out").exists()
