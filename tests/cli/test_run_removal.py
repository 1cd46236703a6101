"""``fromscratch runs rm``: asks, removes whole runs and nothing else, and says what it removed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fromscratch.runs.directory import RunDirectory
from tests.cli.test_runs import asked
from tests.command import nothing_written, refused, run_command


def test_without_a_terminal_it_needs_yes(world: Path) -> None:
    with nothing_written(world):
        refused("runs", "rm", "whole", code=2, says="asks before it removes, but there is no terminal; add --yes")
    size = asked("list", "--filter", "run=whole")[0]["size_bytes"]
    done = asked("rm", "whole", "--yes")
    assert done["removed"] and done["bytes"] == size
    assert [(one["path"], one["size_bytes"]) for one in done["items"]] == [("runs/whole", size)]
    assert [path.name for path in Path("runs").iterdir()] == ["half"]
    text = run_command("runs", "rm", "runs/half", "--yes")
    assert "runs/half" in text.out and "stopped, step 7" in text.out and "freed" in text.err
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize(("typed", "is_removed"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_in_a_terminal_it_asks(world: Path, typed: bytes, is_removed: bool) -> None:
    terminal, its_input = os.openpty()
    os.write(terminal, typed)
    command = [sys.executable, "-m", "fromscratch", "runs", "rm", "half", "whole"]
    done = subprocess.run(command, stdin=its_input, capture_output=True, text=True, check=False, timeout=60)
    os.close(terminal)
    os.close(its_input)
    assert done.returncode == 0 and "Remove these 2 runs, " in done.stderr and "runs/half" in done.stdout
    assert Path("runs/whole").exists() == Path("runs/half").exists() == (not is_removed)
    assert ("freed" if is_removed else "nothing was removed") in done.stderr


def test_a_run_that_is_trained_stays_and_so_do_the_others(world: Path) -> None:
    with RunDirectory(Path("runs/whole")).locked(), nothing_written(world):
        refused("runs", "rm", "half", "whole", "--yes", code=2, says="whole: is being trained by pid")


def test_what_is_no_run_or_more_than_a_run_stays(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("runs/whole", "elsewhere", symlinks=True)
    Path("runs/linked").symlink_to(world / "elsewhere")
    Path("runs/half/notes.txt").write_text("mine")
    with nothing_written(world):
        refused("runs", "rm", "nobody", "whole", "--yes", code=2, says="no such run")
        refused("runs", "rm", "runs", "--yes", code=2, says="no such run")
        refused("runs", "rm", "whole", "half", "--yes", code=2, says="half: also holds notes.txt, which no run has")
        assert "linked: is a link to" in run_command("runs", "rm", "linked", "--yes").err
    monkeypatch.chdir("runs/whole/checkpoints")
    with nothing_written(world):
        refused("runs", "rm", str(world / "runs/whole"), "--yes", code=2, says="holds the current folder")


def test_it_follows_no_links(world: Path) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/kept").write_text("kept")
    shutil.rmtree("runs/whole/evaluations", ignore_errors=True)
    Path("runs/whole/evaluations").symlink_to(world / "elsewhere")
    assert len(asked("rm", "whole", "runs/whole", "--yes")["items"]) == 1
    assert Path("elsewhere/kept").read_text() == "kept" and not Path("runs/whole").exists()


def test_a_removal_that_fails_is_told_and_clean_finishes_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        refused("runs", "rm", "whole", "--yes", code=1, says="was not removed completely (Permission denied: ")
    (rest,) = (path for path in Path("runs").iterdir() if path.name != "half")
    assert [one["name"] for one in asked("list")] == ["half"]
    mine = Path("runs/.store.tmp-5")  # of another command
    mine.mkdir()
    assert [one["path"] for one in asked("clean", "--yes")["items"]] == [str(rest)]
    assert not rest.exists() and mine.exists()


def test_a_run_with_files_of_every_kind_can_be_removed(world: Path) -> None:
    for name in ("stacks", "charts", "evaluations"):
        Path("runs/whole", name).mkdir(exist_ok=True)
    for name in ("trace.json", "cost.json", "samples.txt", ".status.json.tmp-1"):
        Path("runs/whole", name).write_text("{}")
    assert run_command("runs", "rm", "whole", "--yes").code == 0 and not Path("runs/whole").exists()
