"""Whatever a run file or ``--set`` says, the answer is a config or a sentence for the user."""

import random
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fromscratch.config.loading import load_run_config, parse_override, parse_run_config
from fromscratch.config.run import RunConfig
from fromscratch.errors import UsageError

KNOWN_KEYS = (
    "model data train eval base kind preset store tokens seed attention norm schedule clip optimizer prompts",
    "learning_rate lr num_heads embedding_dim warmup_steps min_learning_rate int str",
)
KEYS = st.one_of(st.sampled_from(" ".join(KNOWN_KEYS).split(" ")), st.text(max_size=5))
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.dates(),
        st.sampled_from(["explicit", "linear", "norm", "20x", "gpt2-small", 2**64, "adamw"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=5)
BASE = {"data": {"store": "corpus"}}
FUZZ = settings(max_examples=100)


def config_or_sentence(values: dict[str, Any]) -> None:
    """Any other exception fails the test."""
    try:
        config = parse_run_config(values, where="fuzz")
    except UsageError as error:
        assert str(error).startswith("fuzz: ")
    else:
        assert isinstance(config, RunConfig)
        config.identity({"data.store": "f"})


@FUZZ
@given(TABLES)
def test_any_tables(values: dict[str, Any]) -> None:
    config_or_sentence(values)


@FUZZ
@given(st.sampled_from(["model", "data", "train", "eval"]), TABLES)
def test_any_values_in_a_known_table(name: str, values: dict[str, Any]) -> None:
    config_or_sentence(BASE | {name: values})


@FUZZ
@given(
    st.sampled_from(["attention", "norm", "init", "clip", "schedule", "optimizer", "nonfinite"]),
    st.one_of(VALUES, st.dictionaries(st.sampled_from(["kind", "eps", "max_norm", "warmup_steps"]), VALUES)),
)
def test_any_filling_of_a_slot(slot: str, filling: Any) -> None:
    table = "model" if slot in {"attention", "norm", "init"} else "train"
    config_or_sentence(BASE | {table: {slot: filling}})


@pytest.fixture(scope="module")
def fuzz_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, written anew by every example."""
    return tmp_path_factory.mktemp("fuzz") / "run.toml"


def load_or_sentence(path: Path, overrides: list[str]) -> None:
    """Any exception but a UsageError fails the test."""
    try:
        load_run_config(path, overrides)
    except UsageError as error:
        assert str(error)


@FUZZ
@given(content=st.one_of(st.binary(max_size=60), st.text("[]{}=\"'.,#\n\\ abc01-_\0", max_size=60).map(str.encode)))
def test_any_bytes_as_a_file(fuzz_file: Path, content: bytes) -> None:
    fuzz_file.write_bytes(content)
    load_or_sentence(fuzz_file, [])


@FUZZ
@given(seed=st.integers(0, 10_000))
def test_a_good_file_with_damaged_bytes(fuzz_file: Path, seed: int) -> None:
    chance = random.Random(seed)
    content = bytearray(tomli_w.dumps(parse_run_config(BASE, where="base").to_plain()).encode())
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.choice(b'\n"[]=.{}0x#')
    fuzz_file.write_bytes(content)
    load_or_sentence(fuzz_file, [])


SETTINGS = st.one_of(
    st.text(max_size=30),
    st.tuples(st.lists(KEYS, min_size=1, max_size=4).map(".".join), st.text(max_size=12)).map("=".join),
    st.tuples(
        st.sampled_from(["model.attention", "train.clip", "train.schedule.kind", "data.tokens", "model", "base"]),
        st.sampled_from(["norm", "{}", "[", "{kind='linear'}", "1", "nan", "explicit", "''", "2020-01-01", "0x10"]),
    ).map("=".join),
)


@FUZZ
@given(overrides=st.lists(SETTINGS, max_size=4))
def test_any_overrides(fuzz_file: Path, overrides: list[str]) -> None:
    fuzz_file.write_text('[data]\nstore = "corpus"\n[train]\nclip = "norm"\n')
    load_or_sentence(fuzz_file, overrides)


@given(st.text())
def test_any_override_is_parsed_or_refused(item: str) -> None:
    try:
        assert isinstance(parse_override(item), dict)
    except UsageError as error:
        assert str(error).startswith("--set ")
