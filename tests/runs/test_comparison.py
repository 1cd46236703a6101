"""``compare``: the figures of each run, the config values that differ, one curve per run; runs stay as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from fromscratch.runs import charts
from fromscratch.runs.directory import RunDirectory
from tests.command import nothing_written, refused, run_command
from tests.small import run_small, write_run_file


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    file = write_run_file(folder)
    run_small(file, name="first", stop_after=7)
    run_small(file, name="first")
    run_small(file, name="second", overrides=["train.seed=7", 'train.clip="none"'])
    return folder / "runs"


def test_figures_and_differences(world: Path) -> None:
    with nothing_written(world):
        answer = run_command("compare", "first", "second", "--runs-dir", world, "--json")
    found = json.loads(answer.out)
    assert found["config"]["train.seed"] == {"first": 42, "second": 7}
    assert found["config"]["train.clip.kind"] == {"first": "norm", "second": "none"}
    assert found["config"]["train.clip.max_norm"] == {"first": 1.0, "second": None}
    assert set(found["config"]) == {"train.seed", "train.clip.kind", "train.clip.max_norm"}
    for row in found["runs"]:
        records = [json.loads(line) for line in Path(row["path"], "metrics.jsonl").read_text().splitlines()]
        assert (row["step"], row["tokens"], row["final_loss"]) == (20, 20 * 8 * 16, records[-1]["loss"])
        speed = row["tokens"] / sum(record["seconds"] for record in records)
        assert row["tokens_per_second"] == pytest.approx(speed)
    told = run_command("compare", "first", "second", "--runs-dir", world)
    assert "train.seed" in told.out and "draws the loss curves" in told.err


def test_the_picture_has_a_curve_of_training_and_one_held_out_for_each_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    figure_of = charts.figure_of

    def kept(title: str, draw: Any) -> Any:
        drawn.append(figure_of(title, draw))
        return drawn[-1]

    monkeypatch.setattr(charts, "figure_of", kept)
    done = run_command("compare", "first", world / "second", "--runs-dir", world, "--picture", tmp_path / "losses.png")
    assert done.code == 0 and (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    lines = {line.get_label(): line for line in drawn[0].axes[0].get_lines()}
    assert list(lines) == ["first", "first, held out", "second", "second, held out"]
    records = [json.loads(line) for line in (world / "second" / "metrics.jsonl").read_text().splitlines()]
    assert list(lines["second"].get_ydata()) == [record["loss"] for record in records]
    assert list(lines["second"].get_xdata()) == [record["tokens"] for record in records]


def test_runs_of_the_same_name_and_the_same_config(world: Path, tmp_path: Path) -> None:
    run_small(write_run_file(tmp_path), name="first")
    other = tmp_path / "runs" / "first"
    found = json.loads(run_command("compare", world / "first", other, "--json").out)
    assert [row["label"] for row in found["runs"]] == [str(world / "first"), str(other)]
    assert "config: the same" in run_command("compare", world / "first", other).out


def test_what_cannot_be_compared_is_refused(world: Path, tmp_path: Path) -> None:
    refused("compare", "first", "first", "--runs-dir", world, code=2, says="names one run; give two or more")
    refused("compare", "first", "third", "--runs-dir", world, code=2, says="no such run")
    missing = tmp_path / "no" / "x.png"
    refused("compare", "first", "second", "--runs-dir", world, "--picture", missing, code=2, says="cannot be written")


def test_a_long_run_is_drawn_by_its_running_median(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text(
        "".join(json.dumps({"step": n, "tokens": 10 * n, "loss": float(n % 2)}) + "\n" for n in range(1, 201))
    )
    figure = charts.figure_of("t", lambda axes: charts._draw_losses(axes, {"long": run}))
    (line,) = figure.axes[0].get_lines()
    assert line.get_label() == "long, running median" and max(line.get_xdata()) <= 2000  # type: ignore[arg-type, type-var]
