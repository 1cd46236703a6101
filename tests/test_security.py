"""Promises to whoever runs this: nothing from outside is executed, nothing leaves its folder, no secret is written."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command import nothing_written, refused
from tests.hub_server import HubServer
from tests.small import make_store, write_run_file
from tests.test_architecture import SOURCE_FILES, relative

SECRETS = {
    "HF_TOKEN": "hf_0secretOfTheHub",
    "OPENAI_API_KEY": "sk-0secretOfOpenAI",
    "WANDB_API_KEY": "0secretOfWandb",
    "AWS_SECRET_ACCESS_KEY": "0secretOfAws",
    "GITHUB_TOKEN": "ghp_0secretOfGithub",
}
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


class Payload:
    """Code that runs where a pickle of it is loaded carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def calls_in(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a source file, by the name it calls."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_b25_no_pickle_is_loaded_or_written_anywhere() -> None:
    found, restricted = [], 0
    for path in SOURCE_FILES:
        for name, call in calls_in(path):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load" and options.get("weights_only") == "True":
                restricted += 1
            elif name.partition(".")[0] in PICKLERS or "allow_pickle" in options:
                found.append(f"{relative(path)}: {ast.unparse(call)}")
    assert found == []
    assert restricted == 1, "one place reads others' pickles, by the restricted reader"


@pytest.mark.parametrize("name", ["model.pt", "ckpt.pt", "pytorch_model.bin"])
def test_b25_a_malicious_pickle_is_refused_by_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "ran"
    Path("bad").mkdir()
    torch.save({"model": Payload(marker), "model_args": {}}, Path("bad", name))
    with nothing_written(tmp_path):
        refused("import", f"bad/{name}", "--out", "out", code=3, says="refused: a pickle that holds more than tensors")
        refused("import", "bad", "--out", "out", code=3, says="refused: a pickle that holds more than tensors")
        refused("generate", "bad", code=2, says="bad")
        refused("publish", "bad", "--to", "out", code=2, says="bad")
    assert not marker.exists()


def test_names_in_a_manifest_cannot_leave_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fromscratch.errors import DataError
    from fromscratch.files import verify_folder

    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("../secret", str(secret), "a/../../secret", "", "a\0b"):
        content = {"format_version": 1, "files": {name: {"bytes": 6, "sha256": "0"}}}
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match="which is not in the folder"):
            verify_folder(folder)


def test_shards_that_an_index_names_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fromscratch.errors import DataError
    from fromscratch.formats.weights import read_weights

    for name in ("../secret.safetensors", "/etc/passwd", "a/b.safetensors"):
        index = {"weight_map": {"w": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(DataError, match="no weight_map of files in this folder"):
            read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "a/..", "-x/y", "a/b?x=/etc", "a//b", "a/b\n"])
def test_names_on_the_hub_are_names(name: str) -> None:
    from fromscratch.hub.names import model_name

    assert model_name(f"hf://{name}") is None


def test_a_store_with_links_to_elsewhere_is_not_uploaded(tmp_path: Path) -> None:
    from fromscratch.data.hub_store import push_store
    from fromscratch.errors import DataError

    store = make_store(tmp_path / "store")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (store.tokenizer_folder / "notes").symlink_to(secret)
    with pytest.raises(DataError, match="is a link to a file outside of the store"):
        push_store(store, "hf://me/store", card="", private=True)


def everything_written(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def test_b30_no_secret_of_the_environment_is_written_or_said(tmp_path: Path) -> None:
    """A training, its records, and calls of the Hub that fail: in other processes, with secrets about."""
    write_run_file(tmp_path, train={"sample_every": 10})
    with HubServer() as hub:
        hub.refuses_token = True
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(tmp_path / "home"), **SECRETS}

        def said(*arguments: str) -> tuple[int, str]:
            command = [sys.executable, "-m", "fromscratch", *arguments]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
            )
            return done.returncode, done.stdout + done.stderr

        answers = [
            said("train", "small.toml"),
            said("runs", "show", "small", "--json"),
            said("publish", "small", "--to", "hf://me/model", "--yes", "--debug"),
            said("generate", f"hf://{SECRETS['HF_TOKEN']}:x@me/nothing"),
        ]
    assert [code for code, _ in answers] == [0, 0, 1, 2], answers
    texts = [text for _, text in answers[:3]]
    assert not [name for name, secret in SECRETS.items() if any(secret in text for text in texts)]
    leaks = [
        f"{name} in {path.relative_to(tmp_path)}"
        for path, content in everything_written(tmp_path)
        for name, secret in SECRETS.items()
        if secret.encode() in content
    ]
    assert leaks == []
    assert len(list(everything_written(tmp_path / "runs"))) > 15
