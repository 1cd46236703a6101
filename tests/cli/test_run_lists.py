"""``fromscratch runs list``: columns of what differs, order, conditions, and times that a copy keeps."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fromscratch.config.loading import read_toml
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from tests.cli.test_runs import asked, listed
from tests.command import refused, run_command


def change(name: str, key: str, value: Any) -> None:
    """Copies the run ``whole`` with another value of a key."""
    if not Path("runs", name).exists():
        shutil.copytree("runs/whole", Path("runs", name), symlinks=True)
    config = read_toml(Path("runs", name, "run.toml"))
    *tables, last = key.split(".")
    table = config
    for part in tables:
        table = table[part]
    table[last] = value
    RunDirectory(Path("runs", name)).write_config(config)


@pytest.fixture
def study(world: Path) -> Path:
    """Beside ``half`` and ``whole``: ``fast`` and ``slow`` with other learning rates, ``other`` with another seed."""
    change("fast", "train.optimizer.learning_rate", 0.1)
    change("slow", "train.optimizer.learning_rate", 0.002)
    change("other", "train.seed", 7)
    return world


def names(*options: str) -> list[str]:
    shown = run_command("runs", "list", *options)
    assert shown.code == 0, shown.err
    return [line.split()[0] for line in shown.out.splitlines()[1:]]


def table(*options: str) -> dict[str, dict[str, str]]:
    """Cells by run and column; cells are split at two spaces."""
    head, *rows = run_command("runs", "list", *options).out.splitlines()
    cells = [[cell for cell in row.split("  ") if cell] for row in (head, *rows)]
    columns = [cell.strip() for cell in cells[0]]
    return {row[0]: dict(zip(columns, map(str.strip, row), strict=True)) for row in cells[1:]}


def test_seed_and_keys_that_differ_are_columns(study: Path) -> None:
    cells = table()
    assert {name: row["seed"] for name, row in cells.items()} == {
        "fast": "42", "half": "42", "other": "7", "slow": "42", "whole": "42"
    }  # fmt: skip
    rates = {name: row["optimizer.learning_rate"] for name, row in cells.items()}
    assert rates == {"fast": "0.1", "half": "0.01", "other": "0.01", "slow": "0.002", "whole": "0.01"}
    assert list(cells["fast"]) == [
        "run", "state", "step", "done", "loss", "best", "seed", "optimizer.learning_rate", "size", "updated"
    ]  # fmt: skip
    assert "optimizer.learning_rate" not in table("--filter", "train.optimizer.learning_rate=0.01")["other"]
    (fast,) = asked("list", "--filter", "run=fast")
    assert fast["seed"] == 42 and fast["config"]["train.optimizer"] == {"kind": "adamw", "learning_rate": 0.1}


def test_another_kind_of_a_slot_is_a_column(study: Path) -> None:
    change("fast", "train.clip", {"kind": "none"})
    cells = table()
    assert (cells["fast"]["clip.kind"], cells["slow"]["clip.kind"]) == ("none", "norm")
    assert (cells["fast"]["clip.max_norm"], cells["slow"]["clip.max_norm"]) == ("-", "1")


def test_more_keys_than_columns_are_named(study: Path) -> None:
    other: dict[str, float] = {"num_layers": 1, "num_heads": 1, "embedding_dim": 8, "context_length": 8}
    other |= {"dropout": 0.5, "vocab_size": 300}
    for key, value in other.items():
        change("fast", f"model.{key}", value)
    shown = run_command("runs", "list")
    assert "1 more keys differ: train.optimizer.learning_rate;" in shown.err
    assert "num_heads" in shown.out and "learning_rate" not in shown.out


def test_sorted(study: Path) -> None:
    assert names() == ["fast", "half", "other", "slow", "whole"]
    assert names("--sort", "train.optimizer.learning_rate")[::4] == ["slow", "fast"]
    assert names("--sort", "train.optimizer.learning_rate", "--reverse")[::4] == ["fast", "slow"]
    assert names("--sort", "step")[0] == "half"
    change("fast", "train.clip", {"kind": "none"})
    for more in ((), ("--reverse",)):
        assert names("--sort", "train.clip.max_norm", *more)[-1] == "fast"  # it has no such key
    assert asked("list", "--sort", "seed")[0]["name"] == "other"


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["state=done"], ["fast", "other", "slow", "whole"]),
        (["state!=done"], ["half"]),
        (["run=*ow"], ["slow"]),
        (["seed=7"], ["other"]),
        (["seed = 7.0"], ["other"]),
        (["train.optimizer.learning_rate>=0.01", "step>10"], ["fast", "other", "whole"]),
        (["done<0.5"], ["half"]),
        (["train.clip.kind=norm", "model.tied_head=true", "run<g"], ["fast"]),
        (["updated>2026-01-01"], ["fast", "half", "other", "slow", "whole"]),
    ],
)
def test_filtered(study: Path, conditions: list[str], left: list[str]) -> None:
    assert names(*(part for condition in conditions for part in ("--filter", condition))) == left


def test_conditions_that_cannot_be_met(study: Path) -> None:
    nothing = run_command("runs", "list", "--filter", "seed=8")
    assert (nothing.code, nothing.out) == (0, "") and "none of the 5 runs in runs matches --filter" in nothing.err
    refused("runs", "list", "--sort", "los", code=2, says="--sort los: no such column (run, state, step, done, loss")
    refused("runs", "list", "--sort", "los", code=2, says="did you mean 'loss'?")
    refused("runs", "list", "--filter", "train.sed=7", code=2, says="did you mean 'train.seed'?")
    refused("runs", "list", "--filter", "done", code=2, says="write it as KEY=VALUE")
    refused("runs", "list", "--filter", "loss<low", code=2, says="loss is a number, but 'low' is not")


def test_a_config_that_cannot_be_read_is_listed_and_sorted_last(study: Path) -> None:
    Path("runs/fast/run.toml").write_text("[odd")
    assert table()["fast"]["seed"] == "-" and names("--sort", "seed")[-1] == "fast"
    assert names("--filter", "seed=42") == ["half", "slow", "whole"]


def test_a_best_loss_on_training_text_is_marked(world: Path) -> None:
    change("blind", "train.evaluate_every", 0)
    cells = table()
    assert cells["blind"]["best"].endswith(" at 20 (training)") and "training" not in cells["whole"]["best"]


def test_times_are_those_of_the_events(world: Path) -> None:
    """A copied or touched run was trained when it was trained."""
    whole = Path("runs/whole")
    events = [record["at"] for record in read_records(whole / "events.jsonl")]
    before = listed()["whole"]
    assert (before["began_at"], before["updated_at"]) == (events[0], events[-1])
    shutil.copytree(whole, "runs/copied", symlinks=True, copy_function=shutil.copyfile)
    for path in [*whole.rglob("*"), whole]:
        os.utime(path, (0, 0), follow_symlinks=False)
    for name in ("whole", "copied"):
        assert (listed()[name]["began_at"], listed()[name]["updated_at"]) == (events[0], events[-1])


@pytest.mark.parametrize("at", [None, 7, "yesterday", "2026-01-01T10:00:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_is_none_is_unknown(world: Path, at: object) -> None:
    Path("runs/whole/events.jsonl").write_text(json.dumps({"event": "started", "at": at}) + "\n")
    assert (listed()["whole"]["began_at"], listed()["whole"]["updated_at"]) == (None, None)
    assert table()["whole"]["updated"] == "unknown"
