"""Token stores that are empty, damaged or of another kind: B14 to B22, through the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from fromscratch.data.store import TokenSplit
from fromscratch.data.verify import one_token_warnings
from fromscratch.files import sha256_of
from tests.command import nothing_written, refused, run_command

Manifest = dict[str, Any]
TRAIN = ("train", "small.toml", "--name", "new", "--quiet", "--set", "data.store=bad")
NO_EVALUATION = ("--set", "train.evaluate_every=0")


def change_manifest(change: Callable[[Manifest], Any]) -> None:
    """Makes the store ``bad``, a copy whose manifest says something else."""
    shutil.copytree("store", "bad")
    path = Path("bad", "manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def store_of(tokens: list[int]) -> None:
    """Makes the store ``bad``, whose training split is one shard of these tokens."""

    def change(manifest: Manifest) -> None:
        split = manifest["splits"]["train"]
        split["shards"] = split["shards"][:1]
        file = Path("bad", split["shards"][0]["file"])
        save_file({"tokens": np.array(tokens, dtype=np.uint16)}, file)
        facts = {"tokens": len(tokens), "documents": tokens.count(256), "bytes": len(tokens) - tokens.count(256)}
        split |= facts
        split["shards"][0] |= {**facts, "sha256": sha256_of(file)}

    change_manifest(change)


def first_shard() -> Path:
    return sorted(Path("bad").glob("train-*.safetensors"))[0]


@pytest.mark.parametrize("tokens", [[], [1], [1] * 16])
def test_b14_too_few_tokens(world: Path, tokens: list[int]) -> None:
    store_of(tokens)
    with nothing_written(world):
        refused(*TRAIN, *NO_EVALUATION, code=3, says=f"has {len(tokens)} tokens but the run needs 2,561")
        everything = ("--set", "data.tokens='all'")
        refused(*TRAIN, *NO_EVALUATION, *everything, code=3, says=f"has {len(tokens)} tokens but the run needs 129")
    if len(tokens) < 2:
        arguments = ("eval", "loss", "small", "--store", "bad", "--split", "train")
        refused(*arguments, code=3, says=f"has {len(tokens)} tokens; evaluating from token 0 needs at least 2")


MALFORMED: dict[str, tuple[Callable[[Manifest], Any], str]] = {
    "newer": (lambda m: m.update(store_format=9), "written in format 9, this version reads up to 1"),
    "no splits": (lambda m: m.pop("splits"), "malformed at splits"),
    "dtype": (lambda m: m.update(dtype="float32"), "malformed at dtype"),
    "other dtype": (lambda m: m.update(dtype="uint32"), "tokens of uint16, but the manifest says uint32"),
    "negative": (lambda m: m["splits"]["train"].update(tokens=-5), "malformed at splits.train.tokens"),
    "too long": (lambda m: m["splits"]["train"]["shards"][0].update(tokens=9**9), "but the manifest says"),
    "escapes": (lambda m: m["splits"]["train"]["shards"][0].update(file="../store/x"), "shard listed in the manifest"),
    "absolute": (lambda m: m["splits"]["train"]["shards"][0].update(file="/dev/zero"), "shard listed in the manifest"),
    "nul": (lambda m: m["splits"]["train"]["shards"][0].update(file="a\0b"), r"a\x00b: shard listed in the manifest"),
    "long name": (lambda m: m["splits"]["train"]["shards"][0].update(file="a" * 400), "shard listed in the manifest"),
    "no ids": (lambda m: m["tokenizer"].update(vocab_size=-1), "malformed at tokenizer.vocab_size"),
    "huge": (lambda m: m["tokenizer"].update(vocab_size=2**70), "malformed at tokenizer.vocab_size"),
    "no end": (lambda m: m["tokenizer"].update(end_of_text=999), "malformed at tokenizer.end_of_text"),
    "true": (lambda m: m["tokenizer"].update(end_of_text=True), "malformed at tokenizer.end_of_text"),
}


@pytest.mark.parametrize(("change", "says"), MALFORMED.values(), ids=MALFORMED.keys())
def test_b15_manifests(world: Path, change: Callable[[Manifest], Any], says: str) -> None:
    change_manifest(change)
    with nothing_written(world):
        for command in (TRAIN, ("data", "verify", "bad"), ("data", "show", "bad"), ("data", "stats", "bad")):
            refused(*command, code=3, says=says)


SHARDS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-7], "the file is truncated"),
    "empty": (lambda content: b"", "not a safetensors file (0 bytes"),
    "garbage": (lambda content: b"garbage", "not a safetensors file"),
    "header of a gigabyte": (lambda content: (1 << 30).to_bytes(8, "little") + content[8:], "header of 1073741824"),
    "offsets": (lambda content: content.replace(b"[0, ", b"[2, "), "its header is damaged"),
    "other dtype": (lambda content: content.replace(b'"U16"', b'"F16"'), "dtype F16, expected U16 or U32"),
    "other name": (lambda content: content.replace(b'"tokens"', b'"t0kens"'), "holds no tensor named 'tokens'"),
}


@pytest.mark.parametrize(("damage", "says"), SHARDS.values(), ids=SHARDS.keys())
def test_b15_b26_shards(world: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    change_manifest(lambda manifest: None)
    first_shard().write_bytes(damage(first_shard().read_bytes()))
    with nothing_written(world):
        refused(*TRAIN, code=3, says=says)
        refused("data", "verify", "bad", code=3, says=says)


def test_b15_a_missing_shard(world: Path) -> None:
    change_manifest(lambda manifest: None)
    first_shard().unlink()
    refused(*TRAIN, code=3, says="shard listed in the manifest is missing")


def test_b16_an_id_that_no_vocabulary_has(world: Path) -> None:
    store_of([5] * 700 + [400] + [5] * 4_000 + [256])
    refused("data", "verify", "bad", code=3, says="token 700 is 400, but the vocabulary has only 257 ids")
    refused(*TRAIN, *NO_EVALUATION, code=3, says="token 700 is 400, but the vocabulary has only 257 ids")
    status = json.loads(Path("runs", "new", "status.json").read_text())
    assert status["state"] == "failed" and "token 700" in status["reason"]
    evaluation = ("eval", "loss", "small", "--store", "bad", "--split", "train")
    refused(*evaluation, code=3, says="token 700 is 400")


def test_b16_the_look_at_a_store_before_training_takes_no_memory_for_huge_ids() -> None:
    shard = np.full(5_000, 2**32 - 1, dtype=np.uint32)  # counting by id would take 32 GB
    warnings = list(one_token_warnings(TokenSplit("train", (shard,), (0,))))
    assert warnings == ["split 'train': 100% of its tokens are the id 4294967295; is this text?"]


@pytest.mark.parametrize("token", [0, 65])
def test_b17_the_same_token_throughout(world: Path, token: int) -> None:
    store_of([token] * 5_000 + [256])
    answer = run_command("data", "verify", "bad")
    warning = f"split 'train': 100% of its tokens are the id {token}; is this text?"
    assert answer.code == 0 and warning in answer.err
    trained = run_command(*TRAIN, *NO_EVALUATION)
    assert trained.code == 0 and f"notice: {warning}" in trained.err
    assert "is this text?" not in run_command("train", "small.toml", "--name", "new", "--fresh", "--quiet").err


def test_b18_another_tokenizer_than_the_manifest_says(world: Path) -> None:
    change_manifest(lambda manifest: manifest["tokenizer"].update(vocab_size=300, name="other"))
    refused(*TRAIN, code=3, says="was made with tokenizer other (300 ids), but bytes with other ids was found")


def prepare(*more: str) -> tuple[str, ...]:
    return ("data", "prepare", "text.parquet", "--out", "out", "--tokenizer", "bytes", "--workers", "1", "-q", *more)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"body": ["a"]}, "text"),
        ({"text": [["a", "b"]]}, "text"),
        ({"text": pa.array([], pa.string())}, "holds no rows"),
        ({"text": [None, ""]}, "no text found"),
    ],
    ids=["no column", "lists", "no rows", "nulls alone"],
)
def test_b19_b20_parquet_without_text(world: Path, table: dict[str, Any], says: str) -> None:
    pq.write_table(pa.table(table), "text.parquet")
    refused(*prepare(), code=3, says=says)


@pytest.mark.parametrize("content", [b"", b"no parquet at all", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_b20_damaged_parquet(world: Path, content: bytes) -> None:
    Path("text.parquet").write_bytes(content)
    refused(*prepare(), code=3, says="text.parquet")


def test_b20_a_damaged_file_is_left_out_on_request(world: Path) -> None:
    Path("texts").mkdir()
    pq.write_table(pa.table({"text": ["some words", None, "", "other words"] * 20}), "texts/a.parquet")
    Path("texts", "b.parquet").write_bytes(Path("texts", "a.parquet").read_bytes()[:-20])
    words = ["texts" if word == "text.parquet" else word for word in prepare("--json", "--validation", "0.2")]
    refused(*words, code=3, says="b.parquet")
    shutil.rmtree("out", ignore_errors=True)
    answer = run_command(*words, "--skip-bad")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    assert facts["documents"] == 40 and sum(facts["skipped"].values()) == 41, facts["skipped"]


def test_b21_hostile_text(world: Path) -> None:
    texts = ["<|endoftext|>", "a\0b", "\U0001f600 مرحبا", "x" * 1_000_000, *(f"word {i}" for i in range(50))]
    pq.write_table(pa.table({"text": texts}), "text.parquet")
    answer = run_command(*prepare("--json", "--validation", "0.2"))
    assert answer.code == 0 and json.loads(answer.out)["documents"] == len(texts)
    assert run_command("data", "verify", "out").code == 0
    shown = run_command("data", "show", "out", "--split", "train")
    assert shown.code == 0


def test_b22_the_same_document_in_both_splits(world: Path) -> None:
    change_manifest(lambda manifest: None)
    held_out = sorted(Path("bad").glob("validation-*.safetensors"))[0]
    manifest = json.loads(Path("bad", "manifest.json").read_text())
    splits = manifest["splits"]
    shutil.copy(first_shard(), held_out)
    copied = {key: splits["train"]["shards"][0][key] for key in ("tokens", "documents", "bytes", "sha256")}
    splits["validation"]["shards"][0] |= copied
    splits["validation"] |= {key: copied[key] for key in ("tokens", "documents", "bytes")}
    Path("bad", "manifest.json").write_text(json.dumps(manifest))
    refused("data", "verify", "bad", code=3, says="documents of 'train' are also in 'validation'")
