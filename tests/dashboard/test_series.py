"""Thinning of series and reading of metrics, against values that are computed in another way."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fromscratch.dashboard import metrics, series
from fromscratch.dashboard.metrics import MetricsCache
from fromscratch.runs.charts import running_median
from fromscratch.runs.directory import RunDirectory


def test_b41_a_million_points_keep_their_extremes() -> None:
    x, y = np.arange(1_000_000), np.sin(np.arange(1_000_000) / 50_000).astype(np.float32)
    y[123_456], y[765_432], y[500_000] = 9.0, -7.0, np.nan
    line = series.line("loss", x, y)
    assert len(line["x"]) <= 2 * series.MAX_BINS + 2 and line["x"] == sorted(line["x"])
    found = dict(zip(line["x"], line["y"], strict=True))
    assert (found[123_456], found[765_432]) == (9, -7) and 500_000 not in found
    assert line["x"][0] == 0 and line["x"][-1] == 999_999
    band = series.band("range", x, y - 1, y + 1)
    assert max(band["high"]) == 10 and min(band["low"]) == -8 and len(band["x"]) <= series.MAX_BINS


def test_the_median_of_many_points_is_that_of_all_of_them() -> None:
    y = np.random.default_rng(0).normal(size=5_000)
    line = series.median_line("median", np.arange(5_000), y)
    expected = dict(running_median(list(enumerate(y.tolist()))))
    assert len(line["x"]) == series.MAX_BINS // 2
    for place, value in zip(line["x"], line["y"], strict=True):
        assert value == pytest.approx(expected[int(place)], rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_b41_few_or_equal_points(count: int) -> None:
    x, y = np.arange(count), np.full(count, 2.0)
    assert series.line("loss", x, y)["y"] == [2.0] * count and series.median_line("median", x, y)["x"] == []
    assert series.usual_range(y) == (None, "")


def test_an_outlier_does_not_stretch_the_axis() -> None:
    limits, note = series.usual_range(np.array([*np.linspace(2, 3, 1_000), 500.0]))
    assert limits is not None and limits[1] < 4 and "500" in note


def test_blocks_joined_give_what_json_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, lines that Arrow refuses, a line longer than a block, and extra columns."""
    monkeypatch.setattr(metrics, "BLOCK_BYTES", 4_000)
    records = [{"step": step, "loss": 5 - step / 1000, "extra": step / 2} for step in range(1, 901)]
    records[100]["loss"] = math.nan
    lines = [json.dumps(record) for record in records]
    lines[450] = lines[450].replace('"loss": ', '"loss": "x", "was": ')
    lines.insert(700, "x" * 9_000)
    run = RunDirectory(tmp_path)
    run.metrics.write_text("\n".join(lines[:500]) + "\n")
    cache = MetricsCache()
    assert len(cache.read(run).step) == 500
    with run.metrics.open("a") as file:
        file.write("\n".join(lines[500:]) + "\n")
    found = cache.read(run)
    assert found.step.tolist() == list(range(1, 901)) and found.auxiliary == ["extra", "was"]
    expected = [record["loss"] for record in records]
    expected[450] = math.nan
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(found.values["extra"], [record["extra"] for record in records], rtol=1e-6)
    assert cache.unread_bytes(run) == 0


def test_the_preview_of_a_long_file_is_a_part_of_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text("".join(json.dumps({"step": step, "loss": step / 7}) + "\n" for step in range(1, 20_001)))
    found = MetricsCache().preview(run)
    assert 900 < len(found.step) <= metrics.PREVIEW_LINES and found.step[0] == 1 and found.step[-1] > 19_900
    np.testing.assert_allclose(found.values["loss"], found.step / 7, rtol=1e-6)
