"""Which checkpoints stay, which go, and what is put right after a crash."""

import json
import os
import shutil
from pathlib import Path

import pytest

from fromscratch.errors import DataError
from fromscratch.files import MANIFEST, sealed_folder
from fromscratch.runs.retention import (
    checkpoints_in,
    leftovers_in,
    newest_valid,
    plan_retention,
    recover_leftovers,
    remove_checkpoint,
    repair_links,
    step_of,
    wrong_links,
)


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        with sealed_folder(folder / f"step-{step:08}", step=step) as temporary:
            (temporary / "a.txt").write_text(f"weights of {step}")
            (temporary / "b.txt").write_text("state")


def damage(folder: Path, step: int, file: str = "a.txt") -> None:
    path = folder / f"step-{step:08}" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def steps(paths: tuple[Path, ...] | list[Path]) -> list[int]:
    return [step_of(path) for path in paths]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    make(tmp_path, 5, 10, 15, 20, 25)
    plan = plan_retention(tmp_path, keep=2, best_step=10)
    assert (steps(plan.kept), steps(plan.removed)) == ([10, 20, 25], [5, 15])
    assert steps(checkpoints_in(tmp_path)) == [5, 10, 15, 20, 25], "planning removes nothing"


def test_f7_damaged_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    make(tmp_path, 5, 10, 15, 20)
    damage(tmp_path, 20)
    damage(tmp_path, 15, "b.txt")
    plan = plan_retention(tmp_path, keep=2, best_step=None)
    assert steps(plan.kept) == [5, 10, 15, 20] and not plan.removed
    assert sorted(steps(list(plan.damaged))) == [15, 20]


def test_nothing_goes_while_nothing_is_valid(tmp_path: Path) -> None:
    make(tmp_path, 5, 10)
    damage(tmp_path, 5)
    (tmp_path / "step-00000010" / MANIFEST).unlink()
    assert plan_retention(tmp_path, keep=1, best_step=None).removed == ()


def test_what_was_sealed_a_moment_ago_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 5, 10)
    read: list[Path] = []
    from fromscratch.runs import retention

    monkeypatch.setattr(retention, "verify_folder", lambda path, **_: read.append(path))
    plan_retention(tmp_path, keep=2, best_step=None, trusted=[tmp_path / "step-00000010"])
    assert steps(read) == [5]


def test_a_checkpoint_of_a_later_version_is_not_taken_for_damage(tmp_path: Path) -> None:
    make(tmp_path, 5, 10)
    manifest = json.loads((tmp_path / "step-00000010" / MANIFEST).read_text())
    (tmp_path / "step-00000010" / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(DataError, match="written in format 99"):
        newest_valid(tmp_path)
    assert steps(plan_retention(tmp_path, keep=1, best_step=None).kept) == [5, 10]


def test_f3_a_checkpoint_is_invalid_before_anything_of_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 5, 10)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it
        remove_checkpoint(tmp_path / "step-00000010")
    assert (tmp_path / "step-00000010" / "a.txt").exists()
    newest, skipped = newest_valid(tmp_path)
    assert newest == tmp_path / "step-00000005" and MANIFEST in skipped[0]
    assert steps(plan_retention(tmp_path, keep=1, best_step=None).removed) == [10], "deleted later"


def test_leftovers_go_and_what_had_stepped_aside_comes_back(tmp_path: Path) -> None:
    make(tmp_path, 5, 10)
    (tmp_path / "step-00000010").rename(tmp_path / ".step-00000010.old.tmp-77")
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".step-00000010.tmp-77")
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".step-00000005.old.tmp-77")
    (tmp_path / ".latest.tmp-77").symlink_to("step-00000005")
    (tmp_path / ".status.json.tmp-77").write_text("{")
    (tmp_path / ".hidden").write_text("somebody else's")
    assert recover_leftovers(tmp_path) == [tmp_path / "step-00000010"]
    assert leftovers_in(tmp_path) == [] and (tmp_path / ".hidden").exists()
    newest, skipped = newest_valid(tmp_path)
    assert newest == tmp_path / "step-00000010" and skipped == []


def test_f9_links_that_point_elsewhere_are_reported_and_repaired(tmp_path: Path) -> None:
    runs = tmp_path / "checkpoints"
    make(runs, 5, 10)
    make(tmp_path, 99)
    for target in ("step-00000007", str(tmp_path / "step-00000099"), "../step-00000099", str(runs / "step-00000010")):
        (runs / "latest").unlink(missing_ok=True)
        (runs / "latest").symlink_to(target)
        (wrong,) = wrong_links(runs)
        assert target in wrong
        newest, _ = newest_valid(runs)
        assert newest is not None and newest == runs / "step-00000010"
        repair_links(runs, latest=newest, best_step=5)
        assert wrong_links(runs) == [] and (runs / "latest").readlink().name == "step-00000010"
    repair_links(runs, latest=runs / "step-00000010", best_step=3)
    assert not (runs / "best").is_symlink(), "its checkpoint is gone"


def test_f30_order_is_by_step_whatever_the_clock_says(tmp_path: Path) -> None:
    make(tmp_path, 10, 5)
    os.utime(tmp_path / "step-00000010", (0, 0))
    assert steps(checkpoints_in(tmp_path)) == [5, 10]
    assert newest_valid(tmp_path)[0] == tmp_path / "step-00000010"
