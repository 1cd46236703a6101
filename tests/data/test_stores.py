"""Stores: opening, verifying, measuring and showing them, ours and others'."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fromscratch.data import scan
from fromscratch.data.plain_store import GPT2_DESCRIPTION
from fromscratch.data.shards import ShardWriter, map_shard
from fromscratch.data.show import plain_text, show_tokens, text_with_boundaries
from fromscratch.data.statistics import source_statistics, store_statistics
from fromscratch.data.store import TokenSplit, TokenStore, open_store
from fromscratch.data.verify import verify_store
from fromscratch.errors import DataError, UsageError
from fromscratch.files import sha256_of
from fromscratch.sources import InMemory
from fromscratch.tokenizers.bytes import BytesTokenizer
from fromscratch.tokenizers.gpt2 import GPT2Tokenizer
from tests.command import refused, run_command
from tests.data.helpers import store_of, texts_in

TEXTS = [chr(97 + number % 26) * (number + 1) + f" {number}" for number in range(120)]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return store_of(TEXTS, tmp_path / "store")


def change_manifest(store: TokenStore, change: Any) -> TokenStore:
    """The store with its manifest edited."""
    path = store.path / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    return open_store(store.path)


def test_a_good_store_verifies(store: TokenStore) -> None:
    found = verify_store(store)
    assert (found.problems, found.warnings) == ([], [])
    assert found.tokens == sum(len(text.encode()) + 1 for text in TEXTS)
    assert found.shards == 2


def test_one_flipped_bit_is_found_and_named(store: TokenStore) -> None:
    shard = next(store.path.glob("train-*"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    says = f"{shard.name}: its content does not match the SHA-256"
    refused("data", "verify", store.path, code=3, says=says)


def test_b16_an_id_outside_the_vocabulary_is_found(store: TokenStore) -> None:
    rewrite(store, "train", lambda ids: np.where(np.arange(len(ids)) == 50, 300, ids))
    assert any("token 50 is 300, but the vocabulary has only 257 ids" in p for p in verify_store(store).problems)


def test_end_of_text_in_the_wrong_place_is_found(store: TokenStore) -> None:
    rewrite(store, "train", lambda ids: ids[:-1])
    assert any("expected the end-of-text id 256" in problem for problem in verify_store(store).problems)
    assert any("end-of-text ids, but the manifest says" in problem for problem in verify_store(store).problems)


def test_b22_documents_in_both_splits_are_found(store: TokenStore) -> None:
    held_out = store.split("validation")
    rewrite(store, "train", lambda ids: np.concatenate([ids, held_out.read(0, held_out.tokens)]))
    changed = open_store(store.path)
    documents = changed.manifest.splits["validation"].documents or 0
    change_manifest(changed, lambda raw: _add_documents(raw, documents))
    problems = verify_store(open_store(store.path)).problems
    assert len(problems) == 1
    assert f"{documents} documents of 'train' are also in 'validation'" in problems[0]


def _add_documents(raw: dict[str, Any], documents: int) -> None:
    raw["splits"]["train"]["documents"] += documents
    raw["splits"]["train"]["shards"][0]["documents"] += documents


def rewrite(store: TokenStore, split: str, change: Any) -> None:
    """Changes a split's only shard, and its record with it."""
    (record,) = store.manifest.splits[split].shards
    ids = change(np.array(map_shard(store.path / record.file)).astype(np.int64))
    with ShardWriter(store.path / record.file, "uint16") as writer:
        writer.write(ids)

    def update(raw: dict[str, Any]) -> None:
        raw["splits"][split]["tokens"] = raw["splits"][split]["shards"][0]["tokens"] = len(ids)
        raw["splits"][split]["shards"][0]["sha256"] = sha256_of(store.path / record.file)

    store.manifest = change_manifest(store, update).manifest


def test_b17_one_token_repeated_is_warned_of(tmp_path: Path) -> None:
    store = store_of(["a" * 1_000], tmp_path / "s", validation=0.0)
    assert "100% of its tokens are the id 97" in verify_store(store).warnings[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(store_format=99), "written in format 99"),
        (lambda raw: raw["splits"]["train"].pop("tokens"), "malformed at splits.train.tokens"),
        (lambda raw: raw["tokenizer"].update(vocab_size="many"), "malformed at tokenizer.vocab_size"),
    ],
)
def test_b15_a_manifest_that_is_malformed_or_newer(store: TokenStore, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        change_manifest(store, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["splits"]["train"]["shards"][0].update(tokens=5), "but the manifest says 5"),
        (lambda raw: raw["splits"]["train"]["shards"][0].update(file="../x"), "is missing"),
        (lambda raw: raw.update(dtype="uint32"), "tokens of uint16, but the manifest says uint32"),
        (lambda raw: raw["splits"]["train"].update(documents=1), "says 1 documents, but its shards have"),
    ],
)
def test_b15_a_manifest_that_does_not_fit_its_shards(store: TokenStore, change: Any, message: str) -> None:
    problems = verify_store(change_manifest(store, change)).problems
    assert any(message in problem for problem in problems)


@given(st.lists(st.text(), min_size=1).filter(any), st.integers(1, 40))
def test_documents_are_found_whatever_the_blocks(texts: list[str], block: int) -> None:
    ids = [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]
    tokens = np.concatenate([piece for i in ids for piece in (i, np.array([256], np.uint16))])
    split = TokenSplit("train", (tokens,), (0,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "BLOCK_TOKENS", block)
        assert [bytes(i.tolist()).decode() for i in scan.documents_of(split, 256)] == texts
        lengths = np.concatenate([found for _, found in scan.document_lengths(split, 256)])
    assert lengths.tolist() == [len(text.encode()) for text in texts]


def test_statistics_agree_with_counting_by_hand(store: TokenStore) -> None:
    found = store_statistics(store, ["train", "validation"], context=40, top=3)
    lengths = sorted(len(text) for text in TEXTS)
    assert found.documents == len(TEXTS)
    assert found.bytes == sum(lengths)
    assert found.tokens == sum(lengths) + len(lengths)
    assert found.documents_over_context == sum(n > 40 for n in lengths) / len(lengths)
    assert found.tokens_lost_by_cropping == sum(max(0, n - 40) for n in lengths) / sum(lengths)
    assert (found.shortest, found.longest) == (lengths[0], lengths[-1])
    assert found.length_quantiles["50%"] == lengths[math.ceil(0.5 * len(lengths)) - 1]
    counts = Counter(byte for text in TEXTS for byte in text.encode())
    counts[256] = len(TEXTS)
    assert [entry["count"] for entry in found.frequent_tokens] == [count for _, count in counts.most_common(3)]
    assert sum(b["documents"] for b in found.histogram) == len(TEXTS)
    assert sum(b["tokens"] for b in found.histogram) == sum(lengths)
    from_source = source_statistics([InMemory("t", tuple(TEXTS))], BytesTokenizer(), context=40, top=3)
    assert from_source == found


def test_statistics_of_a_store_and_of_its_source_are_printed_and_drawn(store: TokenStore, tmp_path: Path) -> None:
    picture = tmp_path / "lengths.png"
    done = run_command("data", "stats", store.path, "--context", 64, "--json", "--picture", picture)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["context"] == 64
    assert facts["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source = run_command(
        "data", "stats", tmp_path / "x.jsonl", "--tokenizer", "bytes", "--context", 64, "--json", "--picture", picture
    )
    same = ("documents", "tokens", "bytes", "length_quantiles", "tokens_lost_by_cropping", "frequent_tokens")
    assert {key: json.loads(source.out)[key] for key in same} == {key: facts[key] for key in same}


def test_tokens_are_shown_with_their_boundaries_or_plain(tmp_path: Path) -> None:
    store = store_of(["hé", "x"], tmp_path / "s", validation=0.0)
    table = BytesTokenizer().token_bytes()
    shown = show_tokens(store.split("train"), table, start=0, tokens=99, end_of_text=256)
    assert text_with_boundaries(shown) == "h|\\xc3|\\xa9|<|endoftext|>|\nx|<|endoftext|>|"
    assert plain_text(shown, BytesTokenizer()) == "hé\n\nx\n\n"
    with pytest.raises(UsageError, match="has 6 tokens, counted from 0"):
        show_tokens(store.split("train"), table, start=6, tokens=1, end_of_text=256)
    done = run_command("data", "show", store.path, "--start", 4, "--tokens", 1)
    assert done.out == "x|\n"


def plain_folder(folder: Path, **splits: Any) -> Path:
    """Others' layout: two safetensors files."""
    folder.mkdir()
    for name, ids in splits.items():
        save_file({"tokens": np.array(ids)}, folder / f"{name}.safetensors")
    return folder


def test_a_folder_of_two_plain_files_is_a_store(
    tmp_path: Path, shared_data: Path, gpt2: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpt2.description() == GPT2_DESCRIPTION
    train = np.array([*gpt2.encode("Every effort moves you"), 50256, 11], dtype=np.uint16)
    folder = plain_folder(tmp_path / "theirs", train=train, validation=np.array([262, 50256], np.uint16))
    store = open_store(folder)
    assert store.split("train").read(0, 4).tolist() == [6109, 3626, 6100, 345]
    assert store.manifest.splits["train"].documents is None
    assert verify_store(store).problems == []
    assert any("no checksum was recorded" in warning for warning in verify_store(store).warnings)
    monkeypatch.setenv("FROMSCRATCH_GPT2_VOCABULARY", str(shared_data / "gpt2"))
    done = run_command("data", "show", folder, "--tokens", 5, "--plain")
    assert done.out == "Every effort moves you\n\n\n"
    stats = run_command("data", "stats", folder, "--json", "--picture", tmp_path / "p.png")
    assert json.loads(stats.out)["bytes"] is None


def test_plain_files_are_known_by_their_content(tmp_path: Path) -> None:
    ids = np.arange(3_000_000, dtype=np.uint32) % 50_000
    first = open_store(plain_folder(tmp_path / "a", train=ids, validation=ids[:9]))
    same = open_store(plain_folder(tmp_path / "b", train=ids, validation=ids[:9]))
    longer = open_store(plain_folder(tmp_path / "c", train=np.append(ids, ids[:1]), validation=ids[:9]))
    assert first.fingerprint == same.fingerprint != longer.fingerprint


def test_plain_files_of_different_types_are_refused(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "x", train=np.zeros(9, np.uint16), validation=np.zeros(9, np.uint32))
    with pytest.raises(DataError, match=r"train.safetensors uint16, validation.safetensors uint32"):
        open_store(folder)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_store_is_said_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"store .*{name}: (no such folder|has no manifest.json)"):
        open_store(tmp_path / name)


def test_a_model_trains_on_a_plain_store(tmp_path: Path) -> None:
    ours = store_of(TEXTS, tmp_path / "ours")
    splits = {
        name: ours.split(name).read(0, ours.split(name).tokens).astype(np.uint16) for name in ours.manifest.splits
    }
    folder = plain_folder(tmp_path / "plain", **splits)
    ours.tokenizer_folder.rename(folder / "tokenizer")
    (tmp_path / "run.toml").write_text(
        """
[model]
num_layers = 1
num_heads = 1
embedding_dim = 8
context_length = 8
[data]
store = "plain"
tokens = 64
[train]
global_batch = 2
precision = "fp32"
evaluate_every = 2
"""
    )
    done = run_command("train", tmp_path / "run.toml", "--runs-dir", tmp_path / "runs", "--json", "--device", "cpu")
    assert done.code == 0, done.err
    assert json.loads(done.out)["tokens"] == 64


def test_texts_survive_the_store(store: TokenStore) -> None:
    assert sorted(texts_in(store)) == sorted(TEXTS)


def test_stats_write_no_file_unasked_and_say_what_loses_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(["x" * 100] * 5, tmp_path / "s", validation=0.0)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = run_command("data", "stats", store.path, "--context", 40)
    assert done.code == 0 and list(Path().iterdir()) == []
    assert re.search("lost by packing +nothing", done.out) and "%, in programs that crop" in done.out
