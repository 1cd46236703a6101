"""A scripted judge, files of answers, and no real waiting."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fromscratch.judging import asking, writing
from tests.command import Answer, run_command
from tests.judging.server import JudgeServer

Write = Callable[..., list[Path]]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer() as running:
        yield running


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the command would have waited between requests; it does not."""
    seconds: list[float] = []

    async def sleep(duration: float) -> None:
        seconds.append(duration)

    monkeypatch.setattr(asking, "sleep", sleep)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return seconds


@pytest.fixture(autouse=True)
def _no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no picture but in tests that use ``charts``: it takes longer than all the rest."""
    if "charts" not in request.fixturenames:
        monkeypatch.setattr(writing, "draw_report", lambda *_, **__: None)


def write_answers(folder: Path, number: int, **models: Callable[[int], str]) -> list[Path]:
    """Writes ``MODEL.json`` with the answers to ``number`` questions."""
    paths = []
    for model, answer in models.items():
        records = [
            {"instruction": f"Question {i}?", "input": "", "output": f"Reference {i}.", "model_response": answer(i)}
            for i in range(number)
        ]
        paths.append(folder / f"{model}.json")
        paths[-1].write_text(json.dumps(records))
    return paths


def graded(seed: int, mean: int, words: Callable[[random.Random], int] = lambda _: 3) -> Callable[[int], str]:
    """Answers of random quality around a mean, and of a random length."""

    def answer(number: int) -> str:
        generator = random.Random(f"{seed} {number}")
        return f"quality {mean + generator.randint(-15, 15)} " + "word " * words(generator)

    return answer


def judge(server: JudgeServer, files: list[Path], out: Path, *more: object) -> Answer:
    """Runs ``fromscratch judge`` with short timeouts."""
    return run_command("judge", *files, "--judge", server.name, "--out", out, "--timeout", 5, *more)


def judged(server: JudgeServer, files: list[Path], out: Path, *more: object) -> dict[str, Any]:
    """The report of a command that must end well."""
    answer = judge(server, files, out, "--json", *more)
    assert answer.code == 0, answer
    found: dict[str, Any] = json.loads(answer.out)
    return found
