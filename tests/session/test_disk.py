"""Room for the checkpoints: counted before the first step, to within a hundredth."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from fromscratch.errors import UsageError
from fromscratch.session.disk import plan_disk
from fromscratch.session.plan import plan_run
from tests.small import SMALL_RUN, run_small, write_run_file


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def sizes(folder: Path) -> list[int]:
    return [sum(file.stat().st_size for file in path.iterdir()) for path in folder.glob("step-*")]


def test_the_size_of_a_checkpoint_is_known_before_there_is_one(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    plan = plan_disk(plan_run(file), tmp_path / "runs" / "run")
    run, _ = run_small(file)
    for size in sizes(run.checkpoints):
        assert size == pytest.approx(plan.checkpoint_bytes, rel=0.01)
    assert plan_disk(plan_run(file), run.path).present_bytes == sum(sizes(run.checkpoints))


@pytest.mark.parametrize(("every", "keep", "most"), [(5, 1, 3), (5, 2, 4), (5, 9, 4), (0, 2, 1), (20, 2, 1), (1, 2, 4)])
def test_how_many_there_are_at_once(tmp_path: Path, every: int, keep: int, most: int) -> None:
    train = {**SMALL_RUN["train"], "checkpoint_every": every, "keep_checkpoints": keep}
    assert plan_disk(plan_run(write_run_file(tmp_path, train=train)), tmp_path / "runs" / "x").max_at_once == most


def test_a_run_that_cannot_fit_is_refused_with_the_numbers_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run_file(tmp_path)
    needed = plan_disk(plan_run(file), tmp_path / "runs" / "run").needed_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 1, needed - 1))
    with pytest.raises(UsageError, match=rf"needs {needed:,} bytes(.|\n)*only {needed - 1:,} are free") as caught:
        run_small(file)
    assert caught.value.exit_code == 2 and not (tmp_path / "runs").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, 0, needed))
    assert run_small(file)[1].outcome == "done"
    less = plan_disk(plan_run(file), tmp_path / "runs" / "run").needed_bytes
    assert less < 0.6 * needed, "what is there already needs no room"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed, needed - less, less))
    assert run_small(file)[1].outcome == "done"


def test_what_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 72_200_000_000))
    told = plan_disk(plan_run(write_run_file(tmp_path)), tmp_path / "runs" / "run").describe()
    assert told.startswith("keeps 2 checkpoints and the best one, ") and told.endswith("72.2 GB are free")


def test_a_checkpoint_that_retention_removes_meanwhile_takes_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command trains the run, and deletes a checkpoint after it was listed."""
    monkeypatch.setattr("fromscratch.session.disk.checkpoints_in", lambda folder: [folder / "step-00000004"])
    assert plan_disk(plan_run(write_run_file(tmp_path)), tmp_path / "run").present_bytes == 0
