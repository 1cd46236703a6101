"""Files that are whole or absent, whatever goes wrong on the way."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fromscratch import files
from fromscratch.errors import DataError, UsageError
from fromscratch.files import (
    FORMAT_VERSION,
    MANIFEST,
    check_replaceable,
    locked,
    point_link,
    read_json_object,
    readable_seconds,
    sealed_folder,
    sha256_of,
    to_strict_json,
    verify_folder,
    write_atomically,
)

OWNERS: dict[str, Any] = {"fsync": os, "replace": Path, "mkdir": Path}


def fail_once(patched: pytest.MonkeyPatch, function: str, *, survive: int = 0) -> list[str]:
    """Lets ``survive`` calls of a function of the system through, then fails one; returns a note of that."""
    real: Callable[..., Any] = getattr(OWNERS[function], function)
    calls: list[str] = []
    failures: list[str] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(function)
        if len(calls) == survive + 1:
            failures.append(function)
            raise OSError(5, "Input/output error")
        return real(*arguments, **options)

    patched.setattr(OWNERS[function], function, call)
    return failures


def fill(text: str, *, into: Path) -> None:
    """Seals a folder of two files, one of them deeper, whose content is ``text``."""
    with sealed_folder(into, note=text) as temporary:
        (temporary / "a.txt").write_text(text)
        (temporary / "deep").mkdir()
        (temporary / "deep" / "b.txt").write_text(text * 2)


def state_of(folder: Path) -> str:
    """Which whole state a sealed folder is in."""
    if not folder.exists():
        return "absent"
    verify_folder(folder)
    content = (folder / "a.txt").read_text()
    assert (folder / "deep" / "b.txt").read_text() == 2 * content
    assert read_json_object(folder / MANIFEST)["note"] == content
    return content


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A sealed folder with the content ``new``."""
    fill("new", into=tmp_path / "sealed")
    return tmp_path / "sealed"


@pytest.mark.parametrize("before", ["absent", "old"])
@pytest.mark.parametrize("function", ["fsync", "replace", "mkdir"])
def test_f1_f6_a_failure_at_any_point_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, function: str
) -> None:
    states = []
    for survive in range(100):
        destination = tmp_path / "sealed"
        shutil.rmtree(destination, ignore_errors=True)
        if before == "old":
            fill("old", into=destination)
        with monkeypatch.context() as patched:
            failures = fail_once(patched, function, survive=survive)
            try:
                fill("new", into=destination)
            except OSError:
                assert failures
        assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["sealed"])
        states.append(state_of(destination))
        assert states[-1] in (before, "new")
        if not failures:
            break
    assert len(states) > 2
    assert states[0] == before
    assert states[-1] == "new"


def test_an_error_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), sealed_folder(tmp_path / "x") as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError("inside")
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_of_the_same_process_is_replaced(tmp_path: Path) -> None:
    leftover = tmp_path / f".sealed.tmp-{os.getpid()}"
    leftover.mkdir()
    (leftover / "stale").write_text("stale")
    fill("new", into=tmp_path / "sealed")
    assert set(verify_folder(tmp_path / "sealed")["files"]) == {"a.txt", "deep/b.txt"}


def test_manifest_holds_sizes_hashes_and_facts(sealed: Path) -> None:
    manifest = verify_folder(sealed)
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["note"] == "new"
    assert manifest["files"]["a.txt"] == {
        "bytes": 3,
        "sha256": "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437",
    }


def complaint(folder: Path) -> str:
    """What verification says; the test fails where it is content."""
    with pytest.raises(DataError) as caught:
        verify_folder(folder)
    return str(caught.value)


def test_f7_one_flipped_bit_is_found_and_the_file_named(sealed: Path) -> None:
    file = sealed / "deep" / "b.txt"
    content = bytearray(file.read_bytes())
    content[2] ^= 1
    file.write_bytes(content)
    assert complaint(sealed).startswith(f"{file}: its content does not match the SHA-256 in manifest.json")
    assert verify_folder(sealed, checksums=False)["note"] == "new"


@pytest.mark.parametrize(("content", "size"), [("n", 1), ("", 0), ("newer", 5)])
def test_f8_another_size_is_found_without_checksums(sealed: Path, content: str, size: int) -> None:
    (sealed / "a.txt").write_text(content)
    with pytest.raises(DataError, match=rf"a\.txt: {size} bytes, but manifest\.json says 3"):
        verify_folder(sealed, checksums=False)


def test_f8_missing_file(sealed: Path) -> None:
    (sealed / "a.txt").unlink()
    assert complaint(sealed) == f"{sealed / 'a.txt'}: missing, but listed in manifest.json"


def test_b15_newer_format_is_named_whatever_else_changed(sealed: Path) -> None:
    (sealed / MANIFEST).write_text('{"format_version": 2, "shards": []}')
    assert complaint(sealed) == f"{sealed}: written in format 2, this version reads up to 1; upgrade"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format_version": 1', "not valid JSON"),
        ("[]", "holds list, expected a JSON object"),
        ("{}", "malformed, it has no format_version and list of files"),
        ('{"format_version": "1", "files": {}}', "malformed, it has no format_version"),
        ('{"format_version": 1, "files": []}', "malformed, it has no format_version"),
        ('{"format_version": 1, "files": {"a.txt": 3}}', "malformed, it lacks the size or the SHA-256 of a.txt"),
        ('{"format_version": 1, "files": {"a.txt": {"bytes": 3}}}', "malformed, it lacks the size or the SHA-256"),
        ('{"format_version": 1, "files": {"../x": {"bytes": 3, "sha256": ""}}}', "lists ../x, which is not in"),
        ('{"format_version": 1, "files": {"/x": {"bytes": 3, "sha256": ""}}}', "lists /x, which is not in"),
    ],
)
def test_b15_malformed_manifest(sealed: Path, content: str, reason: str) -> None:
    (sealed / MANIFEST).write_text(content)
    assert reason in complaint(sealed)


def test_no_manifest(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"{tmp_path / MANIFEST}: cannot be read (No such file or directory)"


def test_manifest_that_is_no_text(sealed: Path) -> None:
    (sealed / MANIFEST).write_bytes(b"\xff\xfe")
    assert "not valid JSON" in complaint(sealed)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_f6_a_file_keeps_its_content_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as patched:
        fail_once(patched, function)
        with pytest.raises(OSError, match="Input/output error"):
            write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_links_are_swapped_and_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_link(tmp_path / "latest", "one")
    with monkeypatch.context() as patched:
        fail_once(patched, "replace")
        with pytest.raises(OSError, match="Input/output error"):
            point_link(tmp_path / "latest", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]
    assert str((tmp_path / "latest").readlink()) == "one"
    point_link(tmp_path / "latest", "two")
    assert str((tmp_path / "latest").readlink()) == "two"


def test_f23_json_is_strict() -> None:
    value = {"loss": float("nan"), "list": [float("inf"), -float("inf"), 1.5, (1, float("nan"))], 3: {"x": 0.1}}
    assert to_strict_json(value) == '{"loss": null, "list": [null, null, 1.5, [1, null]], "3": {"x": 0.1}}'


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_strict_json_can_always_be_written_and_read(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(to_strict_json(value).encode("utf-8"), parse_constant=refuse)


def test_lone_surrogates_survive_as_escapes() -> None:
    text = to_strict_json({"sample": "half \ud83d of a pair", "whole": "\U0001f600"})
    assert json.loads(text.encode("utf-8")) == {"sample": "half \ud83d of a pair", "whole": "\U0001f600"}


def test_sha256_of_more_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"new")
    whole = sha256_of(tmp_path / "x")
    monkeypatch.setattr(files, "HASH_BLOCK_BYTES", 2)
    assert sha256_of(tmp_path / "x") == whole == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (95, "95 s"), (130, "2 minutes"), (5_400, "90 minutes"), (9_000, "2.5 hours")]
)
def test_durations_are_said_in_the_unit_of_people(seconds: float, said: str) -> None:
    assert readable_seconds(seconds) == said


class TestCheckReplaceable:
    """A command replaces only what it wrote itself, whole and unchanged."""

    @staticmethod
    def seal(folder: Path, kind: str = "published-native") -> None:
        with sealed_folder(folder, kind=kind) as temporary:
            (temporary / "config.json").write_text("{}")
            (temporary / "deep").mkdir()
            (temporary / "deep" / "weights").write_text("1")

    def test_what_may_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        self.seal(tmp_path / "ours")
        (tmp_path / "link").symlink_to("ours")
        for name, real in (("new", "new"), ("empty", "empty"), ("ours", "ours"), ("link", "ours")):
            assert check_replaceable(tmp_path / name, "published", option="--to") == tmp_path / real
        (tmp_path / "ours" / "deep" / "weights").unlink()
        assert check_replaceable(tmp_path / "ours", "published", option="--to")  # a damaged export may be repaired

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda out: (out / "main.py").write_text("mine"), "also holds main.py"),
            (lambda out: (out / ".git").mkdir() or (out / ".git" / "HEAD").write_text("x"), "also holds .git/HEAD"),
            (lambda out: (out / "checkpoint-500").mkdir(), "also holds checkpoint-500"),
            (lambda out: (out / "deep" / "link").symlink_to("/nowhere"), "also holds deep/link"),
            (lambda out: (out / "config.json").write_text('{"my": 1}'), "a file was changed since it was written"),
            (lambda out: (out / "manifest.json").unlink(), "holds config.json, deep, which this command did not write"),
            (lambda out: (out / "manifest.json").write_text("[]"), "which this command did not write"),
        ],
    )
    def test_what_is_the_users(self, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
        out = tmp_path / "out"
        self.seal(out)
        change(out)
        with pytest.raises(UsageError, match=f"--to .*{message}.*nothing was written"):
            check_replaceable(out, "published", option="--to")

    def test_other_kinds_files_and_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seal(tmp_path / "model", kind="model")
        (tmp_path / "file").write_text("")
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        for name, message in (("../model", "another kind"), ("../file", "is a file"), (".", "is the current folder")):
            with pytest.raises(UsageError, match=message):
                check_replaceable(Path(name), "published", option="--to")
            with pytest.raises(UsageError, match="exists already and holds" if name == "../model" else message):
                check_replaceable(Path(name), None, option="--to")

    def test_where_no_folder_can_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seal(tmp_path / "ours")
        (tmp_path / "file").write_text("")
        (tmp_path / "mounted").mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
        monkeypatch.chdir(tmp_path / "ours" / "deep")
        for place, message in (
            (tmp_path / "file" / "new", f"{tmp_path / 'file'} is a file"),
            (tmp_path / "ours", "is the current folder or above it"),
            (tmp_path / ("x" * 300), "cannot be used .*name too long"),
            (tmp_path / "mounted", "is a mount point"),
        ):
            with pytest.raises(UsageError, match=f"--to {place}: {message}"):
                check_replaceable(place, "published", option="--to")

    def test_a_folder_that_is_not_writable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(UsageError, match=f"{tmp_path} is not writable"):
            check_replaceable(tmp_path / "deep" / "new", "published", option="--to")


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_in_the_place_of_a_sealed_folder_is_replaced_and_what_it_names_stays(
    tmp_path: Path, target: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / "sealed").symlink_to(target)
    fill("new", into=tmp_path / "sealed")
    assert state_of(tmp_path / "sealed") == "new" and not (tmp_path / "sealed").is_symlink()
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "sealed"]


def test_a_lock_has_one_holder_and_is_free_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with pytest.raises(DataError), locked(path):
        with pytest.raises(UsageError, match="in use"), locked(path, refusal="in use"):
            pytest.fail("a second holder")
        raise DataError("while it is held")
    with locked(path, refusal="in use"):
        pass


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    with sealed_folder(tmp_path / "sealed") as temporary:
        (temporary / "a.bin").write_text("weights")
        (temporary / "a.bin").chmod(0o600)
    folder_mode = (tmp_path / "sealed").stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "sealed").iterdir()} == {folder_mode}
