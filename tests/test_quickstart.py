"""The quickstart, whole but small: one package's documentation, a few dozen steps."""

from pathlib import Path

import pytest

from fromscratch.quickstart import QuickstartReport, Scale, quickstart
from fromscratch.runs.directory import RunDirectory
from fromscratch.training.observers import SilentObserver
from tests.conftest import drawn_charts
from tests.training.test_loop import SignalAt

SMALL = Scale(packages=("pydantic", "not-installed"), vocabulary_size=512, tokens=110 * 1024)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuickstartReport]:
    folder = tmp_path_factory.mktemp("quickstart")
    with drawn_charts():
        return folder, quickstart(folder, observers=[SilentObserver()], scale=SMALL)


def test_it_learns_and_shows_it(finished: tuple[Path, QuickstartReport]) -> None:
    folder, report = finished
    assert report.before is not None and report.after is not None
    assert report.before.bits_per_byte is not None and report.after.bits_per_byte is not None
    assert report.after.bits_per_byte < report.before.bits_per_byte - 0.5
    assert report.before.tokens == report.after.tokens
    assert 1 < report.compressors["xz"] < report.compressors["gzip"] < 8
    assert report.samples_before != report.samples_after
    assert all(text.startswith(("Return the", "Every effort moves you")) for text in report.samples_after)
    assert all(Path(chart).is_file() for chart in report.charts) and len(report.charts) == 3
    assert RunDirectory(folder / "runs" / "quickstart").read_status().state == "done"


def test_a_second_time_it_only_measures(finished: tuple[Path, QuickstartReport]) -> None:
    folder, report = finished
    store = folder / "store" / "manifest.json"
    before = store.stat().st_mtime_ns
    again = quickstart(folder, observers=[], scale=SMALL)
    assert store.stat().st_mtime_ns == before
    assert again.after is not None and report.after is not None and again.after.loss == report.after.loss


def test_it_stops_when_asked_and_goes_on(tmp_path: Path) -> None:
    import signal

    small = Scale(packages=("pydantic",), vocabulary_size=300, tokens=110 * 1024)
    stopped = quickstart(tmp_path, observers=[SignalAt(2, signal.SIGINT)], scale=small)
    assert stopped.after is None and stopped.training.step < 10
