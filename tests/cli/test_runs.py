"""``fromscratch runs``: what it says of runs in every state, and what it dares to remove."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fromscratch.formats.model_sources import open_model
from fromscratch.machine.hardware import find_hardware
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from tests.command import Answer, nothing_written, refused, run_command


def asked(*arguments: str) -> Any:
    answer = run_command("runs", *arguments, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def listed() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in asked("list")}


def set_status(name: str, **facts: Any) -> None:
    path = Path("runs", name, "status.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def checkpoints(name: str) -> list[str]:
    return sorted(path.name for path in Path("runs", name, "checkpoints").glob("step-*"))


def test_list(world: Path) -> None:
    with nothing_written(world):
        runs = listed()
    done, half = runs["whole"], runs["half"]
    assert (done["state"], done["step"], done["num_steps"], done["progress"]) == ("done", 20, 20, 1.0)
    assert (half["state"], half["step"], half["progress"]) == ("stopped", 7, 0.35)
    assert done["best_step"] == 20 and 2 < done["best_loss"] < done["loss"] + 1 < 8
    assert done["size_bytes"] == sum(p.lstat().st_size for p in Path("runs/whole").rglob("*") if not p.is_dir())
    assert done["checkpoints"] == 2 and done["updated_at"] >= done["began_at"] and done["began_at"].endswith("+00:00")
    assert done["best_measure"] == "at most 320 tokens of split 'validation'"
    answer = run_command("runs", "list")
    lines = answer.out.splitlines()
    assert f"{done['best_loss']:.4f} at 20" in lines[2] and "'eval loss' takes the whole split" in answer.err
    assert lines[0].split() == ["run", "state", "step", "done", "loss", "best", "seed", "size", "updated"]
    assert lines[1].startswith("half   stopped  7 of 20   35%") and len(lines) == 3


def test_a_run_that_nobody_trains_is_interrupted(world: Path) -> None:
    set_status("half", state="running", step=5)
    Path("runs/half/lock").write_text("pid 1 on elsewhere\n")
    assert (listed()["half"]["state"], listed()["half"]["step"]) == ("interrupted", 7)
    with RunDirectory(Path("runs/half")).locked():
        half = listed()["half"]
        assert half["state"] == "running" and f"pid {os.getpid()} on" in half["reason"]
    Path("runs/half/status.json").unlink()
    assert listed()["half"]["state"] == "interrupted"


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_how_a_run_ended(world: Path, state: str) -> None:
    set_status("half", state=state, reason="because\x1b[31m")
    assert listed()["half"]["state"] == state
    assert "(because\\x1b[31m)" in run_command("runs", "show", "half").out


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b'{"state": "odd"}', b'{"state": ["done"]}', b'{"step": "x"}']
)
def test_a_status_that_says_nothing(world: Path, content: bytes) -> None:
    Path("runs/half/status.json").write_bytes(content)
    assert listed()["half"]["state"] in ("unknown", "interrupted")
    assert run_command("runs", "show", "half").code == 0


def test_b40_records_that_are_none(world: Path) -> None:
    Path("runs/half/metrics.jsonl").write_text(
        '{"step": "x", "loss": "1"}\nno json\n{"step": 1e308, "loss": NaN}\n{"step": -4, "loss": 1'
        + "0" * 400
        + '}\n{"st'
    )
    Path("runs/half/events.jsonl").write_text('{"event": "evaluation", "loss": "low"}\n[]\n{"event": {}}\n')
    assert listed()["half"]["loss"] is None
    shown = asked("show", "half")
    assert shown["outcomes"] == {"None": 3} and shown["events"] == {"evaluation": 1, "{}": 1}
    assert run_command("runs", "show", "half").code == 0


def test_nothing_to_list(world: Path) -> None:
    Path("none").mkdir()
    answer = run_command("runs", "list", "--runs-dir", "none")
    assert (answer.code, answer.out) == (0, "") and "no runs in none" in answer.err
    refused("runs", "list", "--runs-dir", "nowhere", code=2, says="nowhere: no such folder of runs")
    refused("runs", "show", "nobody", code=2, says="no such run, here or in runs")


def test_show(world: Path) -> None:
    shown = asked("show", "whole")
    assert shown["config"]["train.clip"] == {"kind": "norm"} and shown["config"]["model.num_layers"] == 2
    assert "train.seed" not in shown["config"]
    of_slice = f"{shown['best_loss']:.4f} at 20 (at most 320 tokens of split 'validation')"
    assert of_slice in run_command("runs", "show", "whole").out
    assert [(c["step"], c["valid"], c["latest"]) for c in shown["checkpoints"]] == [(15, True, False), (20, True, True)]
    assert shown["events"]["checkpoint"] == 4 and shown["machine"]["device"] == "cpu"
    assert sum(shown["outcomes"].values()) == 20 and shown["clipped"] == shown["outcomes"]["clipped"] > 0
    Path("runs/whole/checkpoints/step-00000015/model.safetensors").write_bytes(b"")
    text = run_command("runs", "show", "runs/whole").out
    assert "model.safetensors: 0 bytes, but manifest.json says" in text and "latest, best" in text


RUN = ("train", "small.toml", "--quiet", "--name")
OTHER = ("--set", "model.dropout=0", "--set", "train.optimizer.learning_rate=0.5")
ALLOWED = ("--allow-change", "model.dropout", "--allow-change", "train.optimizer.learning_rate")


@pytest.mark.parametrize(
    ("name", "more", "code"),
    [("whole", (), 0), ("whole", (*OTHER, *ALLOWED), 0), ("half", ("--stop-after", "7", *OTHER, *ALLOWED), 75)],
    ids=["finished", "finished, with changes", "stopped"],
)
def test_a_session_without_a_step_changes_nothing(world: Path, name: str, more: tuple[str, ...], code: int) -> None:
    run = Path("runs", name)
    before, listed_before, config = _contents(run), listed()[name], asked("show", name)["config"]
    assert run_command(*RUN, name, *more).code == code
    assert _contents(run) == before and listed()[name] == listed_before
    assert config["model.dropout"] == 0.2 and asked("show", name)["config"] == config


def _contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Content and time of every file but the lock, which is taken and released."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_show_tells_which_steps_had_which_config(world: Path) -> None:
    first = Path("runs/half/configs/step-00000000.toml")
    assert first.read_bytes() == Path("runs/half/run.toml").read_bytes()
    assert [one["changes"] for one in asked("show", "half")["config_by_steps"]] == [[]]
    kept = first.read_bytes()
    assert run_command(*RUN, "half", *OTHER, *ALLOWED, "--stop-after", "12").code == 75
    assert first.read_bytes() == kept and "dropout = 0.0" in Path("runs/half/run.toml").read_text()
    shown = asked("show", "half")
    assert [(one["first_step"], one["last_step"]) for one in shown["config_by_steps"]] == [(1, 7), (8, 12)]
    changes = ["model.dropout: 0.2 -> 0.0", "train.optimizer.learning_rate: 0.01 -> 0.5"]
    assert [one["changes"] for one in shown["config_by_steps"]] == [[], changes]
    text = run_command("runs", "show", "half").out
    assert "(from step 8)" in text and "steps 8 to 12  step-00000007.toml: model.dropout: 0.2 -> 0.0" in text
    back = ("--allow-change", "model.dropout", "--allow-change", "train.optimizer.learning_rate")
    assert run_command(*RUN, "half", *back).code == 0
    spans = [(one["first_step"], one["last_step"]) for one in asked("show", "half")["config_by_steps"]]
    assert spans == [(1, 7), (8, 12), (13, 20)]


def test_steps_that_are_taken_again_have_the_config_of_the_later_session(world: Path) -> None:
    kept = ("--set", "train.keep_checkpoints=9")
    assert run_command(*RUN, "again", *kept, "--stop-after", "7").code == 75
    assert run_command(*RUN, "again", *kept, *OTHER, *ALLOWED, "--stop-after", "12").code == 75
    for step in (10, 12):
        damage(Path(f"runs/again/checkpoints/step-{step:08}/model.safetensors"))
    assert run_command(*RUN, "again", *kept, *ALLOWED).code == 0
    (only,) = asked("show", "again")["config_by_steps"]
    assert (only["first_step"], only["last_step"]) == (1, 20)


def test_a_run_of_an_earlier_version_keeps_its_config(world: Path) -> None:
    before = Path("runs/half/run.toml").read_bytes()
    shutil.rmtree("runs/half/configs")
    assert asked("show", "half")["config_by_steps"] == []
    assert run_command(*RUN, "half", *OTHER, *ALLOWED).code == 0
    assert Path("runs/half/configs/step-00000000.toml").read_bytes() == before
    assert [one["first_step"] for one in asked("show", "half")["config_by_steps"]] == [1, 8]


def test_an_earlier_checkpoint_is_evaluated_with_its_own_config(world: Path) -> None:
    change = ("--set", "model.head=linear", "--allow-change", "model.head", "--set", "train.keep_checkpoints=9")
    assert run_command(*RUN, "half", *change, "--allow-change", "train.keep_checkpoints").code == 0
    cpu = find_hardware("cpu")
    heads = [open_model(f"runs/half@step-{step}", cpu).config.model_dump()["head"]["kind"] for step in (7, 20)]
    assert heads == ["chunked", "linear"]


def test_another_machine_does_not_replace_the_earlier_one(world: Path) -> None:
    machine = Path("runs/half/machine.json")
    earlier = json.loads(machine.read_text()) | {"device_name": "another processor"}
    machine.write_text(json.dumps(earlier))
    assert run_command(*RUN, "half").code == 0
    (event,) = [one for one in read_records(Path("runs/half/events.jsonl")) if one["event"] == "machine-changed"]
    del earlier["stores"]  # where they are is no part of the machine
    assert event["earlier"] == earlier and json.loads(machine.read_text())["device_name"] != "another processor"


def test_verify_names_every_bad_file(world: Path) -> None:
    assert run_command("runs", "verify").code == 0
    bad = [Path("runs/whole/checkpoints/step-00000020", name) for name in ("model.safetensors", "state.json")]
    for path in bad:
        damage(path)
    Path("runs/half/checkpoints/step-00000005/manifest.json").unlink()
    answer = run_command("runs", "verify")
    assert answer.code == 3
    assert all(f"{path}: its content does not match" in answer.err for path in bad)
    assert "step-00000005: has no manifest.json" in answer.err and answer.err.count("error: ") == 3
    assert "whole: 2 checkpoints" in answer.out and "1 damaged" in answer.out
    damage(Path("runs/whole/tokenizer/tokenizer_description.json"))
    problems = json.loads(run_command("runs", "verify", "whole", "--json").out)["problems"]
    assert len(problems) == 3 and "tokenizer_description.json" in problems[2]


def test_b27_a_checkpoint_of_a_newer_version(world: Path) -> None:
    for path in Path("runs/whole/checkpoints").glob("step-*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    with nothing_written(Path("runs/whole/checkpoints")):
        for command in (("runs", "verify", "whole"), ("generate", "whole"), ("runs", "clean", "whole", "--yes")):
            answer = run_command(*command)
            assert answer.code == 3 and "written in format 9, this version reads up to 1" in answer.err, answer


def test_clean_shows_first_and_removes_when_told(world: Path) -> None:
    leftovers = [Path("runs/whole/checkpoints/.step-00000009.tmp-1"), Path("runs/whole/.status.json.tmp-1")]
    leftovers[0].mkdir()
    leftovers[1].write_text("half")
    with nothing_written(world):
        planned = asked("clean", "whole", "--keep", "1")
        text = run_command("runs", "clean", "whole", "--keep", "1")
    assert "nothing was removed; --yes frees" in text.err and text.out.count("runs/whole") == 3
    assert planned["removed"] is False and {one["kind"] for one in planned["items"]} == {"leftover", "checkpoint"}
    done = asked("clean", "whole", "--keep", "1", "--yes")
    assert [one["path"] for one in done["items"]] == [one["path"] for one in planned["items"]] and done["removed"]
    assert checkpoints("whole") == ["step-00000020"] and not any(path.exists() for path in leftovers)
    assert asked("clean", "whole", "--keep", "1")["items"] == []
    assert run_command("generate", "whole", "--tokens", "1").code == 0


def test_clean_never_takes_the_last_good_checkpoint(world: Path) -> None:
    damage(Path("runs/whole/checkpoints/step-00000020/model.safetensors"))
    assert asked("clean", "whole", "--keep", "1", "--yes")["items"] == []
    assert checkpoints("whole") == ["step-00000015", "step-00000020"]


def test_clean_puts_back_what_stepped_aside(world: Path) -> None:
    folder = Path("runs/whole/checkpoints")
    (folder / "step-00000020").rename(folder / ".step-00000020.old.tmp-7")
    assert asked("clean", "whole")["items"] == []
    assert asked("clean", "whole", "--yes")["put_back"] == [str(folder / "step-00000020")]
    assert checkpoints("whole") == ["step-00000015", "step-00000020"]


def test_clean_leaves_a_run_alone_that_is_trained(world: Path) -> None:
    with RunDirectory(Path("runs/whole")).locked(), nothing_written(world):
        for more in ((), ("--yes",)):
            refused("runs", "clean", "whole", "--keep", "1", *more, code=2, says="is being trained by pid")
        answer = run_command("runs", "clean", "--keep", "1")
    assert answer.code == 0 and "whole: is being trained by pid" in answer.err and answer.out == ""


def test_runs_set_aside_go_only_when_asked(world: Path) -> None:
    shutil.copytree("runs/whole", "runs/whole.old-1", symlinks=True)
    Path("outside").mkdir()
    Path("outside/run.toml").write_text("")
    Path("runs/whole.old-2").symlink_to(world / "outside")
    assert asked("clean", "whole", "--yes")["items"] == []
    with RunDirectory(Path("runs/whole.old-1")).locked():
        refused("runs", "clean", "whole", "--set-aside", "--yes", code=2, says="is being trained")
    done = asked("clean", "whole", "--set-aside", "--yes")
    assert [one["path"] for one in done["items"]] == ["runs/whole.old-1"]
    assert not Path("runs/whole.old-1").exists() and Path("outside/run.toml").exists()
    assert sorted(path.name for path in Path("runs").iterdir()) == ["half", "whole", "whole.old-2"]


def test_clean_finishes_the_interrupted_removal_of_a_run(world: Path) -> None:
    renamed = Path("runs/.whole.old-1.tmp-5")
    renamed.mkdir()
    with nothing_written(world):
        assert [one["path"] for one in asked("clean")["items"]] == [str(renamed)]
    assert [one["path"] for one in asked("clean", "--yes")["items"]] == [str(renamed)] and not renamed.exists()


def test_clean_follows_no_links(world: Path) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/kept").write_text("kept")
    Path("runs/whole/checkpoints/.step-00000001.tmp-3").symlink_to(world / "elsewhere")
    Path("runs/whole/checkpoints/step-00000001").symlink_to(world / "elsewhere")
    assert len(asked("clean", "whole", "--yes")["items"]) == 1
    assert Path("elsewhere/kept").read_text() == "kept"
    shutil.move("runs/half/checkpoints", "elsewhere/checkpoints")
    Path("runs/half/checkpoints").symlink_to(world / "elsewhere" / "checkpoints")
    with nothing_written(world / "elsewhere"):
        refused("runs", "clean", "half", "--keep", "1", "--yes", code=2, says="nothing there is removed")


def in_a_process(shell: str, **environment: str) -> Answer:
    command = shell.replace("fromscratch", f"{sys.executable} -m fromscratch")
    environment = {**os.environ, **environment}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, check=False, timeout=60
    )
    return Answer(done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1"))


def test_b42_narrow_plain_and_closed(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run_command("runs", "list").out
    assert max(map(len, narrow.splitlines())) <= 40 and "  state    done" in narrow
    monkeypatch.setenv("COLUMNS", "200")
    assert len(run_command("runs", "list").out.splitlines()) == 3
    Path("runs/half").rename("runs/h\xe4lf\x1b[31m")
    plain = in_a_process("fromscratch runs list; fromscratch runs show h*", LC_ALL="C", PYTHONUTF8="0", NO_COLOR="1")
    assert "\x1b" not in plain.out + plain.err and "Traceback" not in plain.err and "lf\\x1b[31m" in plain.out
    closed = in_a_process("fromscratch runs list | true; fromscratch runs show whole | head -c 1")
    assert closed.err.startswith("best: ") and len(closed.err.splitlines()) == 1 and closed.out == "r"
