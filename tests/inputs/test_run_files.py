"""Run files, names and options that cannot be meant: B1 to B13, through the command line."""

import os
import re
from pathlib import Path

import pytest

from tests.command import nothing_written, refused, run_command


def refused_settings(*settings: str, says: str, code: int = 2) -> str:
    """Training with ``--set`` is refused, and leaves nothing."""
    words = [word for setting in settings for word in ("--set", setting)]
    with nothing_written(Path()):
        message = refused("train", "small.toml", "--name", "new", *words, code=code, says=says)
    assert message.count("\n") == 1 and message.startswith("error: "), message
    return message


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.lr_rate=1", "train.lr_rate: unknown key; did you mean 'train.optimizer.learning_rate'?"),
        ("train.optimizer.lr_rate=1", "did you mean 'learning_rate'?"),
        ("modle.dropout=0", "did you mean 'model'?"),
        ("eval.splitt='x'", "did you mean 'split'?"),
    ],
)
def test_b1_unknown_keys(world: Path, setting: str, says: str) -> None:
    refused_settings(setting, says=says)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.optimizer.learning_rate='0.001x'", 'learning_rate = "0.001x": must be a number'),
        ("train.optimizer.learning_rate=nan", "learning_rate = nan: must be"),
        ("train.optimizer.learning_rate=inf", "learning_rate = inf: must be a finite number"),
        ("train.global_batch=true", "train.global_batch = true: must be a whole number"),
        ("train.seed=1.5", "train.seed = 1.5: must be a whole number"),
        ("model.tied_head=1", "model.tied_head = 1: must be true or false"),
        ("data.tokens='20'", 'data.tokens = "20": must be a number of tokens above 0'),
        ("model=3", "model = 3: must be a table"),
    ],
)
def test_b2_wrong_types(world: Path, setting: str, says: str) -> None:
    refused_settings(setting, says=says)


@pytest.mark.parametrize(
    "setting",
    [
        "train.global_batch=0",
        "train.global_batch=-8",
        "model.context_length=0",
        "model.num_layers=-1",
        "data.tokens=0",
        "data.tokens=-1",
        "train.evaluate_every=-5",
        "train.checkpoint_every=-1",
        "train.keep_checkpoints=0",
        "train.seed=-1",
        "data.epochs=0",
        "eval.tokens=0",
        "train.optimizer.learning_rate=0",
        "train.schedule.warmup_steps=-1",
    ],
)
def test_b3_zero_and_negative(world: Path, setting: str) -> None:
    key, _, value = setting.partition("=")
    assert value in refused_settings(setting, says=key)


@pytest.mark.parametrize("option", ["--micro-batch", "--processes", "--stop-after"])
def test_b3_options(world: Path, option: str) -> None:
    with nothing_written(world):
        refused("train", "small.toml", "--name", "new", option, "0", code=2, says="greater than or equal to 1")


def test_b4_heads_and_width(world: Path) -> None:
    refused_settings("model.num_heads=3", says="embedding_dim = 16 is not divisible by num_heads = 3")


def test_b5_more_ids_than_the_tokens_can_hold(world: Path) -> None:
    message = refused_settings("model.vocab_size=70000", says="model.vocab_size = 70000")
    assert "uint16" in message and "uint32" in message


def test_b6_fewer_ids_than_the_tokenizer(world: Path) -> None:
    refused_settings("model.vocab_size=256", says="model.vocab_size = 256 is below the 257 ids")


def test_b7_a_batch_that_does_not_divide(world: Path) -> None:
    with nothing_written(world):
        refused("train", "small.toml", "--name", "n", "--micro-batch", "3", code=2, says="valid values are 1, 2, 4, 8")


def test_b8_schedules_that_do_not_fit(world: Path) -> None:
    refused_settings("train.schedule.warmup_steps=21", says="needs 21 steps")
    refused_settings('train.schedule={kind="wsd",warmup_steps=5,decay_steps=16}', says="needs 21 steps")
    refused_settings("train.schedule.min_learning_rate=1", says="must not be above optimizer.learning_rate = 0.01")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[train\nseed = 1", "(at line 1, column 7)"),
        (b"[train]\nseed = 1\nseed = 2\n", "A key is given twice (at line 3, column 9)"),
        (b"\xef\xbb\xbf[train]\n", "byte-order mark (line 1, column 1)"),
        (b"[train]\nseed = \xff", "not UTF-8 text (line 2, byte 15 of the file)"),
        (b"a = " + b"[" * 5_000, "not valid TOML"),
        (b"", "data: is required"),
    ],
)
def test_b9_malformed_files(world: Path, content: bytes, says: str) -> None:
    Path("bad.toml").write_bytes(content)
    with nothing_written(world):
        refused("train", "bad.toml", code=2, says=says)


def test_b9_a_file_of_100_megabytes(world: Path) -> None:
    with Path("big.toml").open("wb") as file:
        file.truncate(100 << 20)
    refused("train", "big.toml", code=2, says="larger than 1048576 bytes")


def test_b10_paths_that_are_no_files(world: Path) -> None:
    os.mkfifo("fifo.toml")
    with nothing_written(world):
        refused("train", "fifo.toml", code=2, says="not a regular file")
        refused("train", "store", code=2, says="is a folder")
        refused("train", "missing.toml", code=2, says="no such run file")
        refused("train", "/dev/zero", code=2, says="not a regular file")
        refused("train", "a\0b", code=2, says="null byte")


@pytest.mark.parametrize("name", ["../x", "/abs", "a/b", "", ".", "..", "a\0b", "x" * 300, "a\nb", "-x", "\x1b[31m"])
def test_b11_names_of_runs(world: Path, name: str) -> None:
    with nothing_written(world):
        message = refused("train", "small.toml", f"--name={name}", code=2, says="must be 1 to 100 letters")
        refused("runs", "show", f"nowhere/{name}", code=2, says="no such run")
    assert message[:-1].isprintable()


def test_b12_a_run_of_another_config(world: Path) -> None:
    with nothing_written(world):
        message = refused("train", "small.toml", "--set", "train.seed=7", "-q", code=2, says="train.seed: 42 -> 7")
    assert "--fresh" in message and "--name" in message


def test_b13_a_run_that_is_a_link_is_told(world: Path) -> None:
    Path("elsewhere").mkdir()
    Path("runs/link").symlink_to(world / "elsewhere")
    answer = run_command("train", "small.toml", "--name", "link", "--set", "data.tokens=512")
    assert answer.code == 0 and f"notice: runs/link is a link to {world / 'elsewhere'}" in answer.err
    shown = run_command("runs", "show", "link")
    assert shown.code == 0 and "notice: runs/link is a link to" in shown.err
    assert re.search(r"^link +done", run_command("runs", "list").out, re.MULTILINE)
