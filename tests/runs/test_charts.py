"""Pictures of a run, whatever its records hold."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from fromscratch.errors import UsageError
from fromscratch.runs import charts
from fromscratch.runs.charts import (
    check_picture,
    draw_charts,
    draw_gradient_norm,
    draw_learning_rate,
    draw_loss,
    figure_of,
    plain_number,
    running_median,
    write_picture,
)
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_outcomes

Record = dict[str, Any]
NAMES = ["loss.png", "gradient-norm.png", "learning-rate.png"]


def record(step: int, /, **changes: Any) -> Record:
    """A line of metrics as training writes it."""
    loss = 5.0 - 0.01 * step
    usual = {"step": step, "loss": loss, "loss_min": loss - 0.2, "loss_max": loss + 0.2}
    return usual | {"learning_rate": 1e-3, "grad_norm": 1.5, "clipped": False, "nonfinite": False} | changes


NOTHING = {"loss": None, "loss_min": None, "loss_max": None, "grad_norm": None, "nonfinite": True}
B40_B41_RECORDS: dict[str, list[Record]] = {
    "no points": [],
    "one point": [record(1)],
    "all equal": [record(i, loss=3.0, loss_min=3.0, loss_max=3.0) for i in range(60)],
    "all zero": [record(i, loss=0, loss_min=0, loss_max=0, grad_norm=0, learning_rate=0) for i in range(4)],
    "only null": [record(i, **NOTHING) for i in range(5)],
    "some null": [record(i, **(NOTHING if i % 40 == 7 else {})) for i in range(200)],
    "huge": [record(1), record(2, loss=1e308, grad_norm=1e308, learning_rate=1e308, loss_max=1e308), record(3)],
    "large and tiny": [record(1, loss=1e99, grad_norm=1e99), record(2, grad_norm=5e-324, learning_rate=5e-324)],
    "huge whole numbers": [record(1), record(1, step=10**400), record(2, loss=10**400)],
    "texts": [record(1, step="1"), record(2, loss="3.0", loss_min="x"), record(3, loss={}), record(4)],
    "odd steps": [record(1, step=None), record(1, step=True), record(1, step=[1]), {"loss": 1.0}, record(4)],
    "backwards and negative": [record(5), record(6), record(3, loss=-1, learning_rate=-1, grad_norm=-1)],
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run without records."""
    run = RunDirectory(tmp_path / "first")
    run.create()
    return run


def write(run: RunDirectory, records: list[Record]) -> None:
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))


def drawn(draw: Callable[[Axes], None]) -> Axes:
    """The axes after drawing."""
    axes = Figure().add_subplot()
    draw(axes)
    return axes


def labels(axes: Axes) -> list[str]:
    """What the legend would say."""
    return list(axes.get_legend_handles_labels()[1])


@pytest.mark.parametrize("records", B40_B41_RECORDS.values(), ids=B40_B41_RECORDS.keys())
def test_b40_b41_any_records_give_three_pictures(
    run: RunDirectory, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "DOTS_PER_INCH", 30)
    write(run, records)
    with run.metrics.open("a") as file:
        file.write('not json\n{"step": NaN, "loss": 1}\n{"step": 99, "lo')
    run.events.write_text('{"event": "evaluation", "step": "x", "loss": 1}\n{"event": "evaluation"}\n')
    paths = draw_charts(run, clip_norm=1.0)
    assert [path.name for path in paths] == NAMES
    assert sorted(path.name for path in run.charts.iterdir()) == sorted(NAMES)
    for path in paths:
        image = imread(path)
        assert image.shape[:2] == (135, 240)
        assert image.std() > 0.01


def test_no_records_are_said_in_words() -> None:
    for draw in (lambda axes: draw_loss(axes, [], []), lambda axes: draw_gradient_norm(axes, [], 1.0)):
        axes = figure_of("first: loss", draw).axes[0]
        assert [text.get_text() for text in axes.texts] == ["no steps recorded yet"]
        assert axes.get_legend() is None


def test_a_single_point_can_be_seen() -> None:
    line = drawn(lambda axes: draw_learning_rate(axes, [record(1)])).get_lines()[0]
    assert line.get_marker() == "o"


def test_b41_a_million_points_in_two_seconds(run: RunDirectory) -> None:
    line = json.dumps(record(1, tokens=123456, tokens_per_second=12345.678, seconds=0.123))
    before, after = line.split('"step": 1,')
    with run.metrics.open("w") as file:
        file.writelines(f'{before}"step": {step},{after}\n' for step in range(1_000_000))
    begun = time.process_time()
    draw_charts(run)
    assert time.process_time() - begun < 2.0


def test_loss_chart_shows_band_held_out_and_best() -> None:
    metrics = [record(step) for step in range(200)]
    axes = drawn(lambda axes: draw_loss(axes, metrics, [(50, 4.6), (100, 4.1), (150, 4.3)]))
    assert labels(axes) == [
        "micro-batches, lowest to highest",
        "training",
        "training, running median",
        "held out",
        "best: 4.100 at step 100",
    ]


def test_the_best_epoch_is_named() -> None:
    axes = drawn(lambda axes: draw_loss(axes, [record(1)], [(50, 4.6), (75, 4.1)], epochs={50.0: 2.0, 75.0: 3.0}))
    assert labels(axes)[-1] == "best: 4.100 at step 75, epoch 3"


def test_nothing_is_drawn_between_held_out_points() -> None:
    """A straight line from step 0 to the first evaluation would cut across the training curve."""
    held_out = [(0.0, 8.0), (100.0, 4.1), (150.0, 4.3)]
    axes = drawn(lambda axes: draw_loss(axes, [record(step) for step in range(200)], held_out))
    points = {line.get_label(): line for line in axes.get_lines()}
    assert points["held out"].get_xydata().tolist() == [list(point) for point in held_out]
    assert points["held out"].get_linestyle() == "None" and points["held out"].get_marker() == "o"
    assert points["best: 4.100 at step 100"].get_linestyle() == "None"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.55, 4.2, ["1", "2"]), (0.62, 0.95, ["0.7", "0.8"]), (0.003, 20.0, ["0.01", "0.1", "1", "10"])],
)
def test_labels_of_a_logarithmic_axis_are_plain_numbers(low: float, high: float, expected: list[str]) -> None:
    metrics = [record(1, grad_norm=low), record(2, grad_norm=high)]
    figure = figure_of("", lambda axes: draw_gradient_norm(axes, metrics, None))
    assert set(expected) <= set(shown := axis_labels(figure)) and len(shown) <= 15
    assert all(re.fullmatch(r"[\d.,]+", text) for text in shown), shown


def test_labels_of_a_small_learning_rate_are_plain_numbers() -> None:
    figure = figure_of("", lambda axes: draw_learning_rate(axes, [record(1, learning_rate=3e-5), record(2)]))
    assert "0.0002" in axis_labels(figure)
    tiny = [record(step, learning_rate=3e-5) for step in range(3)]
    figure = figure_of("", lambda axes: draw_learning_rate(axes, tiny))
    assert "0.00001" in axis_labels(figure) and not figure.axes[0].yaxis.get_offset_text().get_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.6, "0.6"), (2000, "2,000"), (1e-5, "0.00001"), (-1.5, "-1.5"), (3e-7, "3e-7"), (2.5e99, "2.5e99")],
)
def test_a_number_is_written_as_it_is_said(value: float, text: str) -> None:
    assert plain_number(value) == text


def axis_labels(figure: Figure) -> list[str]:
    """The labels of the y axis that can be seen."""
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]


def test_one_micro_batch_has_no_band() -> None:
    metrics = [record(step, loss_min=4.0, loss_max=4.0) for step in range(5)]
    assert labels(drawn(lambda axes: draw_loss(axes, metrics, []))) == ["training"]


def test_f23_steps_that_were_not_finite_are_marked() -> None:
    metrics = [record(1), record(2, **NOTHING), record(3), record(4, **NOTHING)]
    assert "not finite: 2 steps" in labels(drawn(lambda axes: draw_loss(axes, metrics, [])))
    assert "not finite: 1 step" in labels(drawn(lambda axes: draw_gradient_norm(axes, metrics[:3], None)))


def test_gradient_norm_with_its_clip_line() -> None:
    axes = drawn(lambda axes: draw_gradient_norm(axes, [record(1), record(2)], 0.5))
    assert labels(axes) == ["before clipping", "clipped above 0.5"]
    assert axes.get_yscale() == "log"


def test_steps_that_were_not_normal_are_marked_and_counted(run: RunDirectory) -> None:
    """Each outcome by itself, at its steps, and all of them though the line is thinned."""
    odd = {30: "nonfinite", 31: "infinite-norm", 50: "scale-overflow", 61: "spike"}
    labelled = (odd.get(step, "clipped" if step % 10 == 0 else "normal") for step in range(5_000))
    write(run, [record(step, outcome=outcome) for step, outcome in enumerate(labelled)])
    outcomes = read_outcomes(run.metrics)
    assert {name: len(steps) for name, steps in outcomes.items()} == {
        "clipped": 498,
        "nonfinite": 1,
        "infinite-norm": 1,
        "scale-overflow": 1,
        "spike": 1,
    }
    axes = drawn(lambda axes: draw_gradient_norm(axes, [record(1), record(2)], None, outcomes))
    assert labels(axes)[1:] == [
        "not finite: 1 step",
        "finite gradients, infinite norm: 1 step",
        "overflow of the loss scale: 1 step",
        "loss spike: 1 step",
        "clipped: 498 steps",
    ]
    assert [line.get_xdata()[0] for line in axes.get_lines()[1:5]] == list(odd)


def test_a_spike_does_not_flatten_the_rest() -> None:
    def top(metrics: list[Record]) -> float:
        return drawn(lambda axes: draw_loss(axes, metrics, [])).get_ylim()[1]

    usual = [record(step) for step in range(400)]
    assert top(usual) > 5.19
    assert top([*usual, record(400, loss=300.0)]) < 6.0


def test_running_median_neither_lags_nor_smears_a_spike() -> None:
    line = [(float(step), 2.0 * step) for step in range(300)]
    assert running_median(line) == line[2:-2]
    flat = [(float(step), 900.0 if step == 150 else 1.0) for step in range(300)]
    assert {value for _, value in running_median(flat)} == {1.0}
    assert running_median([(1.0, 7.0)]) == [(1.0, 7.0)]
    assert [value for _, value in running_median([*flat[:-1], (flat[-1][0], 9.0)])] == [1.0] * (len(flat) - 4), (
        "no jump"
    )


def test_charts_are_replaced_whole(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "DOTS_PER_INCH", 30)
    write(run, [record(1), record(2)])
    before = draw_charts(run)[0].read_bytes()
    write(run, [record(1), record(2, loss=99.0)])

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        draw_charts(run)
    assert (run.charts / "loss.png").read_bytes() == before
    assert sorted(path.name for path in run.charts.iterdir()) == sorted(NAMES)


def test_a_picture_replaces_only_a_picture_of_this_program(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("deep/new.png")
    for name in ("new.png", "deep/new.png", "link.png", "new.png"):
        write_picture(check_picture(tmp_path / name), Figure())
    assert (tmp_path / "link.png").is_symlink()
    (tmp_path / "run.toml").write_text("[model]")
    Figure().savefig(tmp_path / "mine.png")
    for name, message in (
        ("run.toml", "exists already, and is no picture that this program drew"),
        ("mine.png", "exists already, and is no picture that this program drew"),
        ("deep", "exists already, and is no picture that this program drew"),
        ("run.toml/x.png", "run.toml is a file"),
        ("x" * 300, "cannot be written"),
    ):
        with pytest.raises(UsageError, match=f"--picture .*{message}"):
            check_picture(tmp_path / name)
