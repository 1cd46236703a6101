"""The quickstart, whole but small: one package's documentation, a few dozen steps."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from fromscratch.cli.quickstart import show
from fromscratch.quickstart import (
    Paragraph,
    QuickstartReport,
    Scale,
    quickstart,
    sample_paragraph,
    words_of_first_paragraph,
)
from fromscratch.runs.directory import RunDirectory
from fromscratch.training.observers import SilentObserver
from tests.command import run_command
from tests.conftest import drawn_charts
from tests.training.test_loop import SignalAt

SMALL = Scale(packages=("pydantic", "not-installed"), vocabulary_size=512, tokens=66 * 2048, warmup_steps=10)


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


def test_the_first_command_that_it_suggests_prints_the_paragraph_that_it_shows(
    finished: tuple[Path, QuickstartReport], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = finished
    show(report, folder)
    shown = capsys.readouterr().out
    suggested = next(line for line in shown.splitlines() if "fromscratch generate" in line)
    printed = run_command(*shlex.split(suggested)[1:])
    assert report.paragraph is not None
    assert (printed.code, printed.out) == (0, report.paragraph.text + "\n")
    assert "  | " + report.paragraph.text.replace("\n", "\n  | ") in shown
    assert words_of_first_paragraph(report.paragraph.text) >= 10


def test_the_paragraph_is_the_longest_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["The end.\n\nMore words after an empty line do not count.", "The " + "x = 1 " * 50, "The last of all."]
    monkeypatch.setattr("fromscratch.quickstart.PARAGRAPH_SEEDS", len(texts))
    monkeypatch.setattr("fromscratch.quickstart.continue_text", lambda *_, seed, **__: texts[seed])
    assert [words_of_first_paragraph(text) for text in texts] == [2, 51, 4]
    unused: Any = None
    assert sample_paragraph(unused, unused) == Paragraph(texts[1], 1)
    texts[0] = "The " + "word " * 50
    assert sample_paragraph(unused, unused).seed == 0, "long enough, so no other seed is tried"


def test_a_second_time_it_only_measures(finished: tuple[Path, QuickstartReport]) -> None:
    folder, report = finished
    store = folder / "store" / "manifest.json"
    before = store.stat().st_mtime_ns
    again = quickstart(folder, observers=[], scale=SMALL)
    assert store.stat().st_mtime_ns == before
    assert again.after is not None and report.after is not None and again.after.loss == report.after.loss


def test_it_stops_when_asked_and_goes_on(tmp_path: Path) -> None:
    import signal

    small = Scale(packages=("pydantic",), vocabulary_size=300, tokens=66 * 2048, warmup_steps=10)
    stopped = quickstart(tmp_path, observers=[SignalAt(2, signal.SIGINT)], scale=small)
    assert stopped.after is None and stopped.training.step < 10
