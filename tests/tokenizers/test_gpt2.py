"""GPT-2's tokenizer: the same ids as everybody's, from wherever its vocabulary lies."""

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha1
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tiktoken_ext import openai_public

import tokenizers as hf
from fromscratch.errors import DataError, UsageError
from fromscratch.hub import requests
from fromscratch.tokenizers.gpt2 import (
    GPT2_FINGERPRINT,
    GPT2_FOLDER_VARIABLE,
    TIKTOKEN_URLS,
    GPT2Tokenizer,
    load_gpt2,
)
from fromscratch.tokenizers.huggingface import TOKENIZER_FILE, HuggingFaceTokenizer, load_huggingface
from fromscratch.tokenizers.loading import open_tokenizer
from tests.hub_server import HubServer

EFFORT = [6109, 3626, 6100, 345]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the vocabulary: empty caches, no network."""
    from huggingface_hub import constants

    empty = tmp_path / "empty"
    monkeypatch.delenv(GPT2_FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(empty / "tiktoken"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(empty / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return empty


@pytest.fixture
def tiktoken_cache(gpt2_files: Path, tmp_path: Path) -> Path:
    """The two files as tiktoken itself caches them: under the SHA-1 of their addresses."""
    cache = tmp_path / "tiktoken-cache"
    cache.mkdir()
    for url in TIKTOKEN_URLS:
        shutil.copy(gpt2_files / url.rpartition("/")[2], cache / sha1(url.encode()).hexdigest())
    return cache


def test_known_ids(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.encode("Every effort moves you").tolist() == EFFORT
    assert gpt2.decode(EFFORT) == "Every effort moves you"
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50_257, 50_256)
    assert gpt2.fingerprint == GPT2_FINGERPRINT


def test_the_same_ids_as_the_hugging_face_engine(
    gpt2: GPT2Tokenizer, gpt2_files: Path, book_texts: list[str], hostile_texts: list[str]
) -> None:
    model = hf.models.BPE.from_file(str(gpt2_files / "encoder.json"), str(gpt2_files / "vocab.bpe"))
    engine = hf.Tokenizer(model)
    engine.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = book_texts + hostile_texts
    for ours, theirs in zip(gpt2.encode_documents(texts), engine.encode_batch(texts), strict=True):
        assert ours.tolist() == theirs.ids


def test_what_it_saves_is_read_by_the_hugging_face_engine(
    gpt2: GPT2Tokenizer, tmp_path: Path, book_texts: list[str]
) -> None:
    gpt2.save(tmp_path / "saved")
    other = load_huggingface(tmp_path / "saved")
    assert other.fingerprint == gpt2.fingerprint
    for text in [*book_texts[:5], "a <|endoftext|> b"]:
        assert np.array_equal(other.encode(text), gpt2.encode(text))


def test_folder_of_files_is_recognised(gpt2_files: Path, tmp_path: Path, gpt2: GPT2Tokenizer) -> None:
    for ids_name, merges_name in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        folder = tmp_path / ids_name
        folder.mkdir()
        shutil.copy(gpt2_files / "encoder.json", folder / ids_name)
        shutil.copy(gpt2_files / "vocab.bpe", folder / merges_name)
        found = open_tokenizer(str(folder))
        assert isinstance(found, GPT2Tokenizer)
        assert found.fingerprint == gpt2.fingerprint


def test_folder_with_a_tokenizer_json_is_read_from_that(
    gpt2_files: Path, tmp_path: Path, trained: HuggingFaceTokenizer
) -> None:
    """Other models also ship vocab.json and merges.txt, with another word pattern."""
    trained.save(tmp_path / "saved")
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(tmp_path / "saved" / TOKENIZER_FILE, folder)
    shutil.copy(gpt2_files / "encoder.json", folder / "vocab.json")
    shutil.copy(gpt2_files / "vocab.bpe", folder / "merges.txt")
    assert open_tokenizer(str(folder)).fingerprint == trained.fingerprint


def test_b31_nobody_has_it_and_the_message_says_what_to_do(nowhere: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_tokenizer("gpt2")
    message = str(caught.value)
    assert "\n" not in message
    for advice in (
        f"(no tokenizer.json of openai-community/gpt2 in {nowhere / 'hub'})",
        "run 'hf download openai-community/gpt2 tokenizer.json' where there is a network",
        "put encoder.json and vocab.bpe (or tokenizer.json) in a folder",
        "--tokenizer FOLDER",
        GPT2_FOLDER_VARIABLE,
    ):
        assert advice in message


def test_from_the_folder_named_by_the_variable(
    nowhere: Path, gpt2_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GPT2_FOLDER_VARIABLE, str(gpt2_files))
    assert open_tokenizer("gpt2").encode("Every effort moves you").tolist() == EFFORT
    monkeypatch.setenv(GPT2_FOLDER_VARIABLE, str(nowhere))
    with pytest.raises(UsageError, match=f"{GPT2_FOLDER_VARIABLE} = .*: no GPT-2 vocabulary is there"):
        open_tokenizer("gpt2")


def test_from_tiktokens_own_cache(nowhere: Path, tiktoken_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tiktoken_cache))
    assert open_tokenizer("gpt2").encode("Every effort moves you").tolist() == EFFORT


def test_tiktoken_reads_the_same_cache(
    tiktoken_cache: Path, gpt2: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our copy of its addresses is right, and so are our ids."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tiktoken_cache))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    theirs = tiktoken.Encoding(**openai_public.gpt2())
    text = "naive caf\u00e9 <|endoftext|>  x"
    assert theirs.encode_ordinary(text) == gpt2.encode(text).tolist()


def test_from_the_hub_and_then_from_its_cache(
    nowhere: Path, gpt2: GPT2Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2.save(tmp_path / "served")
    content = (tmp_path / "served" / TOKENIZER_FILE).read_bytes()
    with HubServer({"openai-community/gpt2": {TOKENIZER_FILE: content}}) as hub:
        for offline in (False, True):
            hub.connect(monkeypatch, nowhere, offline=offline)
            assert load_gpt2().encode("Every effort moves you").tolist() == EFFORT
            assert hub.downloads[TOKENIZER_FILE] == 1


def broken(gpt2_files: Path, folder: Path, *, ids: object = None, merges: str | None = None) -> Path:
    """A folder of the two files, one of them changed."""
    folder.mkdir()
    whole = json.loads((gpt2_files / "encoder.json").read_text("utf-8"))
    (folder / "encoder.json").write_text(json.dumps(whole if ids is None else ids), "utf-8")
    (folder / "vocab.bpe").write_text(merges or (gpt2_files / "vocab.bpe").read_text("utf-8"), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("ids", "merges", "reason"),
    [
        ([], None, r"expected ids by token"),
        ({}, None, r"not a byte-level vocabulary as GPT-2's is"),
        ({"a": "b"}, None, r"expected ids by token"),
        ({"\u65e5": 1}, None, r"not a byte-level vocabulary"),
        (None, "#version: 0.2\na b c\n", r"expected merges of two tokens"),
        (None, "#version: 0.2\nxq zj\n", r"its ids do not follow its merges"),
    ],
)
def test_files_that_are_not_gpt2s(
    gpt2_files: Path, tmp_path: Path, ids: object, merges: str | None, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"encoder\.json: .*{reason}"):
        load_gpt2(broken(gpt2_files, tmp_path / "broken", ids=ids, merges=merges))


def test_files_of_another_model_of_the_same_make(gpt2_files: Path, tmp_path: Path) -> None:
    whole = json.loads((gpt2_files / "encoder.json").read_text("utf-8"))
    smaller = {token: index for token, index in whole.items() if index < 1_000}
    merges = "\n".join((gpt2_files / "vocab.bpe").read_text("utf-8").splitlines()[: 1_000 - 256 + 1])
    with pytest.raises(DataError, match="a vocabulary of 1001 ids, but not GPT-2's 50257"):
        load_gpt2(broken(gpt2_files, tmp_path / "small", ids=smaller, merges=merges))


def test_folder_without_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no GPT-2 vocabulary \(encoder.json and vocab.bpe, or tokenizer.json\)"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"merges": [3], "vocab": {}}}', '{"model": 3}', "\0"])
def test_tokenizer_json_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / TOKENIZER_FILE).write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not "):
        load_gpt2(tmp_path)


@contextmanager
def proxy_that_answers(answer: bytes | None) -> Iterator[str]:
    """The address of a proxy that answers every request; with None, of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if answer is None:
            server.close()
            yield address
            return

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1_000)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield address
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"HTTP/1.0 503 Nothing\r\n\r\n"])
def test_a_proxy_without_a_network_is_not_tried_again_and_again(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.delenv("no_proxy", raising=False)
    with proxy_that_answers(answer) as proxy:
        monkeypatch.setenv("https_proxy", proxy)
        assert requests.is_offline()
        with pytest.raises(UsageError, match="the GPT-2 vocabulary is not on this machine"):
            load_gpt2()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 407 Log in\r\n\r\n"])
def test_a_proxy_with_a_network_is_asked(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(requests, "_reached", set())
    monkeypatch.delenv("no_proxy", raising=False)
    with proxy_that_answers(answer) as proxy:
        monkeypatch.setenv("https_proxy", proxy)
        assert not requests.is_offline()


def test_preparing_texts_needs_no_torch() -> None:
    """Importing it takes longer than all else that a missing vocabulary is found by."""
    code = "import sys, fromscratch.formats.preparation, fromscratch.cli.preparation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
