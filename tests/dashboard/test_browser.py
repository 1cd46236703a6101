"""The pages in a real browser: no error, no request to another machine, at two sizes and in two themes."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import Event
from fromscratch.studies.recorded import DEFINITION
from tests.dashboard.conftest import Watched
from tests.processes.forked import Command, Fork, fromscratch
from tests.small import write_run_file
from tests.studies.planted import NO_DROPOUT, write_study

WAIT_MILLISECONDS = 60_000


@pytest.mark.parametrize("phone", [False, True])
@pytest.mark.parametrize("dark", [False, True])
def test_the_first_page(
    watched: Callable[..., Watched], serve: Callable[[Path], str], runs: Path, phone: bool, dark: bool
) -> None:
    page = watched(serve(runs), phone=phone, dark=dark).open("/")
    assert page.locator("#runs tbody tr").count() == 3
    page.get_by_role("searchbox").fill("dropout")
    assert page.locator("#runs tbody tr:visible").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off at the side
    page.get_by_label("Light or dark theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == ("light" if dark else "dark")
    page.wait_for_selector("#live[data-state=on]")


def steps_of(page: Any) -> int:
    """The steps that a run's page says have been taken."""
    return int(page.locator("dl.figures dd").first.inner_text().split(" / ")[0].replace(",", ""))


def until_more_steps(page: Any, steps: int) -> None:
    """Waits until a page says more steps. Waiting inside the page evaluates text, which its policy forbids."""
    for _ in range(WAIT_MILLISECONDS // 100):
        if steps_of(page) > steps:
            return
        page.wait_for_timeout(100)
    raise AssertionError("took too long")


def is_drawn(page: Any, chart: str) -> bool:
    """Whether the canvas of a chart holds lines of more than one colour."""
    return bool(
        page.locator(f"#{chart} .plot canvas").evaluate(
            """canvas => {
              const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
              const seen = new Set();
              for (let place = 0; place < data.length; place += 4) {
                if (data[place + 3] > 200) seen.add([0, 1, 2].map((part) => data[place + part] >> 4).join());
              }
              return seen.size > 2;
            }"""
        )
    )


@pytest.mark.slow
def test_pages_follow_a_training_and_a_study(
    watched: Callable[..., Watched], serve: Callable[[Path], str], tmp_path: Path
) -> None:
    """A run and a study are trained by the real commands while four browsers look."""
    file = write_study(tmp_path, seeds=[1], control_seeds=1, interventions=NO_DROPOUT)
    runs = tmp_path / "runs"
    runs.mkdir()
    address = serve(runs)
    looks = [{"phone": phone, "dark": dark} for phone in (False, True) for dark in (False, True)]
    pages = [watched(address, **look).open("/") for look in looks]
    for page in pages:
        page.get_by_text("No runs yet").wait_for()
    epochs = {"data": {"tokens": 100_000 * 128, "epochs": 1_200}, "train": {"checkpoint_every": 50}}
    train = (str(write_run_file(tmp_path, "long", **epochs)), "--runs-dir", str(runs), "--device", "cpu", "--quiet")
    words = ("study", "run", str(file), "--runs-dir", str(runs), "--device", "cpu", "--jobs", "2", "--quiet")
    training = Fork(Command(fromscratch, ("train", *train, "--name", "long"), tmp_path))
    study = Fork(Command(fromscratch, words, tmp_path))
    try:
        look_at(pages)
    finally:
        training.send(signal.SIGTERM)
        ended = training.wait(), study.wait()
    assert ended == (75, 0), training.stderr + study.stderr
    assert (runs / "study" / DEFINITION).is_file()
    for page in pages:
        page.locator("h1 .state-stopped").wait_for(timeout=WAIT_MILLISECONDS)
        page.get_by_role("link", name="Runs").click()
        page.get_by_role("link", name="study", exact=True).click(timeout=WAIT_MILLISECONDS)
        page.get_by_text("2 done").wait_for(timeout=WAIT_MILLISECONDS)
        page.locator("#chart-curves .plot canvas").wait_for(timeout=WAIT_MILLISECONDS)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def look_at(pages: list[Any]) -> None:
    """Follows a run to its page, and sees it take steps and draw its loss."""
    for page in pages:
        page.get_by_role("link", name="long", exact=True).click(timeout=WAIT_MILLISECONDS)
        page.locator("#chart-loss .plot canvas").wait_for(timeout=WAIT_MILLISECONDS)
        until_more_steps(page, steps_of(page))
        assert is_drawn(page, "chart-loss")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_chart_is_read_by_mouse_and_keyboard_and_saved(
    watched: Callable[..., Watched], serve: Callable[[Path], str], runs: Path
) -> None:
    page = watched(serve(runs)).open("/runs/first")
    canvas = page.locator("#chart-loss .plot canvas")
    canvas.wait_for()
    assert "training: last" in canvas.get_attribute("aria-label")
    page.get_by_role("button", name="held out").click()
    assert page.get_by_role("button", name="held out").get_attribute("aria-pressed") == "false"
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "training" in page.locator("#chart-loss .readout").inner_text()
    with page.expect_response(lambda answer: "first=" in answer.url):
        page.keyboard.press("Enter")
    whole = page.get_by_label("Show the whole range of Loss")
    whole.click()
    assert not whole.is_visible()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60)
    with page.expect_response(lambda answer: "first=" in answer.url):
        page.mouse.up()
    for kind, begin in (("PNG", b"\x89PNG"), ("CSV", b"series,step,value")):
        with page.expect_download() as saved:
            page.get_by_label(f"Save as {kind}: Loss").click()
        assert saved.value.path().read_bytes().startswith(begin)
        assert saved.value.suggested_filename.endswith(f"Loss.{kind.lower()}")


def test_b38_markup_in_names_samples_and_events_is_text(
    watched: Callable[..., Watched], serve: Callable[[Path], str], runs: Path
) -> None:
    name = "<img src=x onerror=document.title='hit'>"
    run = RunDirectory((runs / "first").rename(runs / name))
    run.log_event(Event.SAMPLE, step=20, text="</pre><script>document.title='hit'</script>")
    run.log_event(Event.FAILED, step=20, reason="<script>document.title='hit'</script>")
    page = watched(serve(runs)).open("/")
    page.get_by_role("link", name=name).click()
    page.locator("#chart-loss .plot canvas").wait_for()
    page.get_by_text("</pre><script>").wait_for()
    assert "hit" not in page.title().replace(name, "") and page.locator("main script, main img").count() == 0


def test_b41_charts_with_no_point_one_point_and_equal_points(
    watched: Callable[..., Watched], serve: Callable[[Path], str], runs: Path
) -> None:
    contents = {"first": "", "stopped": '{"step": 1, "loss": 2.5}\n', "no-dropout": '{"step": 1, "loss": 2}\n' * 3}
    contents["no-dropout"] += '{"step": 2, "loss": 2}\n{"step": 3, "loss": 2}\n'
    address = serve(runs)
    for name, lines in contents.items():
        (runs / name / "metrics.jsonl").write_text(lines)
        (runs / name / "events.jsonl").write_text("")
        page = watched(address).open(f"/runs/{name}")
        label = page.locator("#chart-loss .plot canvas").get_attribute("aria-label")
        assert ("no steps recorded yet" in label) == (name == "first")
        assert is_drawn(page, "chart-loss") or name == "first"


def test_compare_by_ticking_runs(watched: Callable[..., Watched], serve: Callable[[Path], str], runs: Path) -> None:
    page = watched(serve(runs)).open("/")
    page.get_by_label("Select first").check()
    page.get_by_label("Select no-dropout").check()
    page.get_by_role("button", name="Compare selected").click()
    page.locator("#chart-compare .plot canvas").wait_for()
    assert "model.dropout" in page.inner_text("main")
    page.locator("select[name=by]").select_option("tokens")
    page.get_by_role("button", name="Show").click()
    page.locator("#chart-compare .plot canvas").wait_for()
    assert "by=tokens" in page.url and "run=first" in page.url


@pytest.mark.parametrize("phone", [False, True])
def test_judge_results_are_reached_read_and_saved(
    watched: Callable[..., Watched], serve: Callable[[Path], str], judged_runs: Path, phone: bool
) -> None:
    page = watched(serve(judged_runs), phone=phone).open("/")
    page.get_by_role("link", name="judged", exact=True).click()
    for chart, kind in (("chart-means", "Mean of each model"), ("chart-differences", "Differences between models")):
        page.locator(f"#{chart} .plot canvas").wait_for()
        assert is_drawn(page, chart)
        for ending, begin in (("PNG", b"\x89PNG"), ("CSV", b"model")):
            with page.expect_download() as saved:
                page.get_by_label(f"Save as {ending}: {kind}").click()
            assert saved.value.path().read_bytes().startswith(begin)
    label = page.locator("#chart-differences .plot canvas").get_attribute("aria-label")
    assert "small - large: worse, effect -" in label
    page.get_by_text("</pre><script>").first.wait_for()
    assert page.title() == "judged · fromscratch" and page.locator("main script").count() == 0
    page.locator("details.question summary").nth(1).click()
    assert page.locator("details.question[open]").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [320, 360, 390])
def test_the_navigation_and_long_names_fit_a_phone(
    watched: Callable[..., Watched], serve: Callable[[Path], str], runs: Path, width: int
) -> None:
    (runs / "no-dropout").rename(runs / ("long-name-" * 10))
    page = watched(serve(runs), phone=True).open("/")
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("/", f"/runs/{'long-name-' * 10}", f"/compare?run=first&run={'long-name-' * 10}", "/playground"):
        page.goto(page.url.partition("/")[0] + "//" + page.url.split("/")[2] + path)
        nav = page.get_by_role("navigation")
        assert nav.evaluate("nav => nav.scrollWidth <= nav.clientWidth"), path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    page.goto(page.url.rpartition("/")[0])
    row = page.get_by_role("link", name="long-name-").locator("xpath=ancestor::td")
    assert row.bounding_box()["width"] >= 150  # not a column of single words
