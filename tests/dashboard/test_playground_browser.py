"""The playground in a real browser: the example, models, chat, classes; at two sizes and in two themes."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.generation.sampling import Sampling
from tests.dashboard.conftest import Watched

WAIT_MILLISECONDS = 120_000  # the first answer waits for torch
SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 3.0, "top_p": 0.97},
    {"top_k": 1},
    {"top_k": 100_000},
]


def done(page: Any) -> None:
    """Waits until a question has been answered."""
    page.locator("#status").get_by_text("done in").wait_for(timeout=WAIT_MILLISECONDS)
    assert page.locator("#problem").inner_text() == ""


def press(page: Any, name: str) -> None:
    """Presses a button and waits for the answer."""
    page.evaluate("document.getElementById('status').textContent = ''")
    page.get_by_role("button", name=name, exact=True).click()
    done(page)


def tokens_of(page: Any, side: str = "a") -> list[str]:
    return list(page.locator(f"#side-{side} .text .token").all_inner_texts())


def test_the_browser_reshapes_as_sampling_does(
    watched: Callable[..., Watched], serve: Callable[[Path], str], tmp_path: Path
) -> None:
    """Exactly where all tokens are sent one by one; to a thousandth where the improbable ones are sent in bins."""
    page = watched(serve(tmp_path)).open("/playground")
    for size, shown, tolerance in ((60, 60, 1e-9), (5_000, 300, 2e-3)):
        logits = torch.randn(1, size, generator=torch.Generator().manual_seed(size)) * 2.5
        logp = logits.double().log_softmax(-1)[0].sort(descending=True).values
        logp[7] = logp[6]  # a tie
        logp = logp.log_softmax(-1)
        distribution = {"top": [{"logp": one} for one in logp[:shown].tolist()], "rest": bins(logp[shown:])}
        for settings in SETTINGS:
            found = page.evaluate(
                """async ([distribution, settings]) => {
                  const shape = await import("/static/playground-shape.js");
                  const names = { temperature: settings.temperature ?? 1, topK: settings.top_k ?? null,
                                  topP: settings.top_p ?? null, minP: settings.min_p ?? null };
                  return shape.reshape(shape.entriesOf(distribution), names);
                }""",
                [distribution, settings],
            )
            expected = Sampling(**settings).probabilities(logp[None])[0].tolist()  # type: ignore[arg-type]
            assert found[:shown] == pytest.approx(expected[:shown], abs=tolerance), settings
            assert sum(found[shown:]) == pytest.approx(sum(expected[shown:]), abs=5 * tolerance), settings


def bins(logp: torch.Tensor) -> list[list[float]]:
    """The bins of ``Continuer.distribution``."""
    numbers = (logp * 4).floor()
    inside = [logp[numbers == number] for number in numbers.unique().flip(0)]
    return [[len(one), float(one.logsumexp(0)) - math.log(len(one))] for one in inside]


def test_the_example_needs_no_model_and_follows_the_sliders(
    watched: Callable[..., Watched], serve: Callable[[Path], str], tmp_path: Path
) -> None:
    watching = watched(serve(tmp_path))
    asked: list[str] = []
    watching.page.on("request", lambda request: asked.append(request.method))
    page = watching.open("/playground")
    done(page)
    assert "not a model" in page.locator("#side-a .about").inner_text() and tokens_of(page) == ["The", " cat"]
    first = page.locator("#side-a button.bar-row").first
    before = first.locator(".bar-share").inner_text()
    slider = page.get_by_label("Temperature")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "0.80"
    assert float(first.locator(".bar-share").inner_text()[:-1]) > float(before[:-1])
    page.get_by_label("Top-k").fill("2")
    assert page.locator("#side-a button.bar-row.out").count() > 10
    assert "left out" in page.locator("#side-a button.bar-row").nth(2).get_attribute("aria-label")
    press(page, "Generate")
    text = tokens_of(page)
    assert len(text) == 42
    press(page, "Remove last token")
    press(page, "Add one token")
    assert tokens_of(page) == text  # the seed decides
    press(page, "Back to the prompt")
    page.locator("#side-a button.bar-row").nth(3).click()
    page.locator("#side-a .text .token.chosen").wait_for()
    page.locator("#side-a .text").focus()
    page.keyboard.press("End")
    assert "Token 3 of 3" in page.locator("#side-a .token-readout").inner_text()
    assert "bits" in page.locator("#side-a .text .token").last.get_attribute("title")
    assert "POST" not in asked


def test_two_models_chat_and_classes_at_two_sizes_and_in_two_themes(
    watched: Callable[..., Watched], serve: Callable[[Path], str], models: Path
) -> None:
    address = serve(models)
    for phone, dark in ((False, False), (False, True), (True, False), (True, True)):
        page = watched(address, phone=phone, dark=dark).open("/playground?model-a=base&max-tokens=5&prompt=the+cat")
        compare_two_models(page)
        chat_and_classify(page)


def compare_two_models(page: Any) -> None:
    """Predicts and generates with two models; an alternative of one continues that one only."""
    press(page, "Predict")
    assert "".join(tokens_of(page)) == "the cat" and page.locator("#side-b").is_hidden()
    page.get_by_label("Second model", exact=True).select_option("imported")
    page.locator("#side-b .bar-row").first.wait_for()
    done(page)
    press(page, "Generate")
    assert len(tokens_of(page)) == len(tokens_of(page, "b")) == 12
    choice = page.locator("#side-b button.bar-row").first
    page.evaluate("document.getElementById('status').textContent = ''")
    choice.focus()
    page.keyboard.press("Enter")
    done(page)
    assert (len(tokens_of(page)), len(tokens_of(page, "b"))) == (12, 13)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    address = page.url
    page.goto(address)
    assert page.get_by_label("Second model", exact=True).input_value() == "imported" and "prompt=the+cat" in address


def chat_and_classify(page: Any) -> None:
    """Chats with a tuned model, and classifies a text."""
    page.get_by_label("Model", exact=True).select_option("tuned")
    page.get_by_role("radio", name="Chat").check()
    page.get_by_label("Message").fill("Say <b>cat</b>")
    press(page, "Send")
    assert page.locator("#chat li").count() == 2 and "Say <b>cat</b>" in page.locator("#chat-prompt").text_content()
    page.get_by_label("Model", exact=True).select_option("classes")
    assert page.get_by_role("radio", name="Classify").is_checked()
    page.get_by_label("Text", exact=True).fill("3 cat")
    press(page, "Classify")
    assert "Class: " in page.locator("#class-found").inner_text() and page.locator("#classes li").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_generation_is_cancelled_and_a_failure_is_told(
    watched: Callable[..., Watched], serve: Callable[[Path], str], models: Path
) -> None:
    watching = watched(serve(models))
    page = watching.open("/playground?model-a=base&max-tokens=256")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Cancel").click()  # while torch is loaded
    page.locator("#status").get_by_text("cancelled").wait_for()
    press(page, "Predict")  # waits until the process is free again
    (models / "imported").rename(models / "hidden")
    try:
        page.evaluate("document.getElementById('status').textContent = ''")
        page.get_by_label("Model", exact=True).select_option("imported")
        page.locator("#problem").get_by_text("there is no folder 'imported'").wait_for()
    finally:
        (models / "hidden").rename(models / "imported")
    assert ["404" in problem for problem in watching.problems] == [True]  # the browser's own note of the refusal
    watching.problems.clear()


def test_b38_what_models_and_people_write_is_text(
    watched: Callable[..., Watched], serve: Callable[[Path], str], models: Path, tmp_path: Path
) -> None:
    name = "<img src=x onerror=document.title='hit'>"
    shutil.copytree(models / "imported", tmp_path / "runs" / name)
    page = watched(serve(tmp_path / "runs")).open("/playground")
    page.get_by_label("Prompt").fill("</script><script>\u202e\u0007\n")
    press(page, "Predict")
    shown = "".join(tokens_of(page))
    assert "</script><script>" in shown
    assert "\u202e" not in shown and "\\u0007" in shown and page.locator("main script, main img").count() == 0
    assert page.locator("#side-a h2").inner_text() == name and page.title().startswith("Playground")
    page.get_by_label("Prompt").fill("Größe 東 🦊")
    press(page, "Predict")
    assert tokens_of(page) == list("Grö·ß·e 東·· 🦊···")  # a byte is a token; the first of a character shows it


def test_a_run_leads_to_the_playground_and_back(
    watched: Callable[..., Watched], serve: Callable[[Path], str], models: Path, tmp_path: Path
) -> None:
    name = "a+b %41 & Größe"
    shutil.copytree(models / "base", tmp_path / "runs" / name)
    shutil.copytree(models / "classes", tmp_path / "runs" / "classes")
    watching = watched(serve(tmp_path / "runs"))
    page = watching.open("/")
    page.get_by_role("link", name=name).click()
    page.get_by_role("link", name="Open in the playground").click()
    page.get_by_role("link", name="Page of the run").wait_for()
    assert page.get_by_label("Model", exact=True).evaluate("one => one.selectedOptions[0].text") == name
    page.get_by_role("link", name="Page of the run").click()
    assert name in page.locator("h1").inner_text()
    page = watching.open("/playground?model-a=classes")
    assert page.get_by_role("radio", name="Classify").is_checked() and page.locator("#not-here").is_hidden()
    page = watching.open("/playground?model-a=gone%2520one")
    assert "The address names gone one, which is not here" in page.locator("#not-here").inner_text()
    page.get_by_label("Model", exact=True).select_option("classes")
    assert page.locator("#not-here").is_hidden()
