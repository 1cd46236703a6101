"""Reading run files: TOML, ``base`` files, ``--set``; and what cannot be read."""

import os
from pathlib import Path

import pytest

from fromscratch.config.loading import MAX_BASES, MAX_FILE_BYTES, load_run_config, merge, parse_override
from fromscratch.config.model import ExplicitAttention, FusedAttention
from fromscratch.config.train import ClipByNorm, ClipByValue, NoClip, WarmupCosine, WarmupStableDecay
from fromscratch.errors import UsageError

from .conftest import WriteRunFile


def complaint(path: Path) -> str:
    """What the user is told; the test fails where nothing is wrong."""
    with pytest.raises(UsageError) as caught:
        load_run_config(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[data]\nstore = \n", "not valid TOML: Invalid value (at line 2, column 9)"),
        (b'[data]\nstore = "a"\nstore = "b"\n', "not valid TOML: A key is given twice (at line 3, column 12)"),
        (b'[data]\nstore = "a"\n[data]\n', "not valid TOML: Cannot declare ('data',) twice (at line 3, column 6)"),
        (b'\xef\xbb\xbf[data]\nstore = "a"\n', "byte-order mark (line 1, column 1); save it as UTF-8 without BOM"),
        (b'[data]\nstore = "\xff"\n', "not UTF-8 text (line 2, byte 16 of the file)"),
        (b"x = " + b"[" * 100_000, "not valid TOML: nested too deeply"),
        (b"x = " + b"1" * 5_000, "not valid TOML: Exceeds the limit"),
        (b"x" * (MAX_FILE_BYTES + 1), "larger than 1048576 bytes; a run file holds settings, not data"),
    ],
)
def test_b9_malformed_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    message = complaint(path)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert len(message) < 300


def test_b9_keys_nested_thousands_deep(run_file: WriteRunFile) -> None:
    key = ".".join(["a"] * 2_000)
    run_file(f"{key} = 1\n", "below.toml")
    assert "nested too deeply" in complaint(run_file(f'base = "below.toml"\n{key} = 2\n'))


def test_b10_folder(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path}: is a folder; give the path of a TOML run file"


@pytest.mark.parametrize("name", ["missing.toml", "missing/run.toml", "nul\0.toml"])
def test_b10_missing(tmp_path: Path, name: str) -> None:
    assert complaint(tmp_path / name).endswith(": no such run file")


def test_b10_name_too_long(tmp_path: Path) -> None:
    assert complaint(tmp_path / ("x" * 5_000)).endswith("cannot be read (File name too long)")


def test_b10_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert complaint(tmp_path / "pipe").endswith("not a regular file; give the path of a TOML run file")


def test_base_files_are_laid_under_one_another(run_file: WriteRunFile) -> None:
    run_file('[data]\nstore = "s"\n[train]\nseed = 1\nglobal_batch = 8\n[train.clip]\nkind = "norm"\n', "a/ground.toml")
    run_file('base = "../a/ground.toml"\n[train]\nseed = 2\n[train.clip]\nmax_norm = 3.5\n', "b/middle.toml")
    config = load_run_config(run_file('base = "b/middle.toml"\n[model]\nattention = "explicit"\n'))
    assert (config.data.store, config.train.seed, config.train.global_batch) == ("s", 2, 8)
    assert config.train.clip == ClipByNorm(max_norm=3.5)
    assert config.model.attention == ExplicitAttention()


def test_bases_in_a_circle(run_file: WriteRunFile) -> None:
    path = run_file('base = "sub/../other.toml"\n')
    run_file('base = "run.toml"\n', "other.toml")
    path.with_name("sub").mkdir()
    assert complaint(path) == f"{path}: circular 'base': {path} is read twice"


def test_a_file_that_is_its_own_base(run_file: WriteRunFile) -> None:
    assert "circular 'base'" in complaint(run_file('base = "run.toml"'))


def test_too_many_bases(run_file: WriteRunFile) -> None:
    for number in range(MAX_BASES + 1):
        run_file(f'base = "{number + 1}.toml"\n', f"{number}.toml")
    assert "more than 16 'base' files" in complaint(run_file('base = "0.toml"'))


def test_missing_base_names_both_files(run_file: WriteRunFile) -> None:
    path = run_file('base = "gone.toml"')
    gone = path.with_name("gone.toml")
    assert complaint(path) == f"{gone}: no such run file (named as 'base' in {path})"


@pytest.mark.parametrize("base", ["3", "true", "[]", "{}"])
def test_base_must_be_text(run_file: WriteRunFile, base: str) -> None:
    assert "must be the path of another run file, in quotes" in complaint(run_file(f"base = {base}"))


@pytest.mark.parametrize("base", ["a\\u0000b", "x" * 5000])
def test_base_that_is_no_path(run_file: WriteRunFile, base: str) -> None:
    complaint(run_file(f'base = "{base}"'))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.seed=7", {"train": {"seed": 7}}),
        (" train . seed = 7 ", {"train": {"seed": 7}}),
        ("data.store=corpus", {"data": {"store": "corpus"}}),
        ("data.store=a b/c=d", {"data": {"store": "a b/c=d"}}),
        ('data.store="7"', {"data": {"store": "7"}}),
        ("data.tokens=20x", {"data": {"tokens": "20x"}}),
        ("a=1e-3", {"a": 1e-3}),
        ("a=true", {"a": True}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ('a={ kind = "norm" }', {"a": {"kind": "norm"}}),
        ("a=", {"a": ""}),
        ("a=1\nb = 2", {"a": "1\nb = 2"}),
        ("a=" + "[" * 10_000, {"a": "[" * 10_000}),
    ],
)
def test_override_values_are_toml_or_bare_words(override: str, expected: dict[str, object]) -> None:
    assert parse_override(override) == expected


@pytest.mark.parametrize("override", ["", "=", "=1", "train.seed", ".seed=1", "train.=1", "a..b=1", "a." * 99 + "a=1"])
def test_override_without_a_key_or_a_value(override: str) -> None:
    with pytest.raises(UsageError, match=r"^--set .*: write it as key=value, for example --set train.seed=7$"):
        parse_override(override)


def test_overrides_win_in_their_order(run_file: WriteRunFile) -> None:
    path = run_file('[data]\nstore = "s"\n[train]\nseed = 1\n')
    assert load_run_config(path, ["train.seed=2", "train.seed=3", "data.store=t"]).train.seed == 3


def test_short_form_of_a_slot(run_file: WriteRunFile) -> None:
    assert load_run_config(run_file(), ["model.attention=explicit"]).model.attention == ExplicitAttention()
    text = '[data]\nstore = "s"\n[model]\nattention = "explicit"\n'
    assert load_run_config(run_file(text), ["model.attention=sdpa"]).model.attention == FusedAttention()


CLIPPED = '[data]\nstore = "s"\n[train.clip]\nkind = "norm"\nmax_norm = 2.0\n'


def test_another_kind_replaces_the_whole_slot(run_file: WriteRunFile) -> None:
    path = run_file(CLIPPED)
    assert load_run_config(path, ["train.clip=none"]).train.clip == NoClip()
    assert load_run_config(path, ["train.clip.kind=value"]).train.clip == ClipByValue()
    assert load_run_config(path, ["train.clip={kind='value', max_value=0.5}"]).train.clip == ClipByValue(max_value=0.5)


def test_the_same_kind_keeps_the_other_settings(run_file: WriteRunFile) -> None:
    path = run_file(CLIPPED)
    assert load_run_config(path, ["train.clip=norm"]).train.clip == ClipByNorm(max_norm=2.0)
    assert load_run_config(path, ["train.clip.kind=norm"]).train.clip == ClipByNorm(max_norm=2.0)
    assert load_run_config(path, ["train.clip.max_norm=3"]).train.clip == ClipByNorm(max_norm=3.0)


def test_kind_and_key_may_come_in_either_order(run_file: WriteRunFile) -> None:
    forwards = ["train.clip=norm", "train.clip.max_norm=3"]
    assert load_run_config(run_file(), forwards).train.clip == ClipByNorm(max_norm=3.0)
    assert load_run_config(run_file(), forwards[::-1]).train.clip == ClipByNorm(max_norm=3.0)


def test_a_key_added_to_a_short_form(run_file: WriteRunFile) -> None:
    path = run_file('[data]\nstore = "s"\n[train]\nschedule = "warmup-cosine"\n')
    assert load_run_config(path, ["train.schedule.warmup_steps=5"]).train.schedule == WarmupCosine(warmup_steps=5)
    stable = load_run_config(path, ["train.schedule={kind='wsd', decay_steps=2}"]).train.schedule
    assert stable == WarmupStableDecay(decay_steps=2)


def test_naming_the_default_kind_of_the_model_keeps_its_table(run_file: WriteRunFile) -> None:
    path = run_file('[data]\nstore = "s"\n[model]\npreset = "laptop-tiny"\n')
    assert load_run_config(path, ["model.kind=gpt"]).model.num_layers == 2


def test_merge_leaves_its_arguments_alone() -> None:
    below, above = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(below, above) == {"a": {"b": 1, "c": 2}}
    assert (below, above) == ({"a": {"b": 1}}, {"a": {"c": 2}})
