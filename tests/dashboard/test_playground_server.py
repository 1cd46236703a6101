"""The playground's page and its process: limits, hostile input, one question at a time, cancelling, time, ends."""

import asyncio
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

from fromscratch.dashboard import playground, playground_child, playground_process
from fromscratch.dashboard.playground_child import Channel
from fromscratch.dashboard.playground_process import ModelProcess
from tests.dashboard.conftest import open_client, wait_until
from tests.dashboard.test_playground import question
from tests.test_architecture import loaded_after_importing

POST = {"Origin": "http://localhost", "Content-Type": "application/json"}
TEXT = "the cat sees"


@pytest.fixture(scope="module")
def process() -> Iterator[ModelProcess]:
    """The process that all tests of this file share."""
    made = ModelProcess()
    yield made
    made.end()


@pytest.fixture(scope="module")
def shared_client(models: Path, process: ModelProcess) -> Iterator[TestClient]:
    """The application over the models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fromscratch.dashboard.playground.ModelProcess", lambda: process)
        yield open_client(models)


def ask(client: TestClient, **asked: Any) -> tuple[int, list[dict[str, Any]]]:
    answer = client.post("/playground/ask", json={"kind": "continue", "text": TEXT, **asked}, headers=POST)
    return answer.status_code, [json.loads(line) for line in answer.text.splitlines()]


def test_the_page_offers_models_below_the_folder_only(models: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(models, tmp_path / "runs", symlinks=True))
    (runs / "tuned").rename(tmp_path / "outside")
    (runs / "tuned").symlink_to(tmp_path / "outside")
    (runs / "classes").rename(runs / "<b>&'x")
    shutil.copytree(runs / "base", os.fsdecode(os.fsencode(runs) + b"/not-utf8-\xff"), symlinks=True)
    (runs / "study").mkdir()
    shutil.copytree(runs / "imported", runs / "study" / "inner")
    client = open_client(runs)
    page = client.get("/playground").text
    assert 'value="base" data-kind="language"' in page and 'value="imported"' in page and 'value="study/inner"' in page
    assert 'value="%3Cb%3E%26%27x" data-kind="classifier"' in page and "<b>&'x" not in page
    assert 'value="not-utf8-%FF"' in page and "outside" not in page and 'value="tuned"' not in page
    assert 'href="/playground" aria-current="page"' in page
    assert ask(client, model="tuned")[0] == 404
    (runs / "imported" / "x").symlink_to(tmp_path / "outside")
    assert ask(client, model="imported")[0] == 403


def test_the_page_without_models_says_so(tmp_path: Path) -> None:
    assert "holds no model yet" in open_client(tmp_path).get("/playground").text


def test_the_server_loads_no_torch() -> None:
    assert "torch" not in loaded_after_importing("fromscratch.dashboard.app")


def test_an_answer_comes_from_another_process(shared_client: TestClient, process: ModelProcess) -> None:
    status, (first, *tokens, last) = ask(shared_client, model="base", max_tokens=3, temperature=0.5)
    assert status == 200 and first["model"]["name"] == "base" and len(tokens) == 3 and last["end"] == "length"
    assert process.is_running
    status, (problem,) = ask(shared_client, model="base", temperature=-1.0)
    assert status == 200 and problem["error"] == "temperature = -1.0: must be 0 (greedy) or a positive number"
    status, (problem,) = ask(shared_client, model="base", checkpoint="step-7")
    assert "no checkpoint 'step-7'" in problem["error"]


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({"model": "../base"}, 404, "no folder"),
        ({"model": "%2e%2e/base"}, 404, "no folder"),
        ({"model": "/etc"}, 404, "no folder"),
        ({"model": "base%00"}, 404, "no folder"),
        ({"model": "base/checkpoints/latest"}, 404, "no folder"),
        ({"model": "gpt2"}, 404, "no folder"),
        ({"model": "hf://owner/name"}, 404, "no folder"),
        ({"model": ""}, 400, "model"),
        ({"model": "base", "checkpoint": "../../x"}, 400, "checkpoint"),
        ({"model": "base", "kind": "train"}, 400, "kind"),
        ({"model": "base", "max_tokens": 257}, 400, "max_tokens"),
        ({"model": "base", "max_tokens": True}, 400, "max_tokens"),
        ({"model": "base", "temperature": "1"}, 400, "temperature"),
        ({"model": "base", "seed": -1}, 400, "seed"),
        ({"model": "base", "tokens": [2**70]}, 400, "tokens"),
        ({"model": "base", "tokens": [-1]}, 400, "tokens"),
        ({"model": "base", "tokens": list(range(2001))}, 400, "tokens"),
        ({"model": "base", "source": "/etc"}, 400, "source"),
        ({"model": "base", "history": [["one"]]}, 400, "history"),
        ({"model": "base", "text": "a" * 20_001}, 400, "text"),
        ({"model": "base", "text": "\N{EURO SIGN}" * 8_000}, 413, "24,000 bytes"),
    ],
)
def test_questions_outside_the_limits_are_refused(
    shared_client: TestClient, asked: dict[str, Any], status: int, says: str
) -> None:
    found, (problem,) = ask(shared_client, **asked)
    assert found == status and says in problem["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"kind": "continue"}', {"Content-Type": "text/plain"}, 415),
        (b"kind=continue", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"{", {}, 400),
        (b"[" * 10_000, {}, 400),
        (b'{"kind": "continue", "model": "base", "text": "a", "temperature": NaN}', {}, 400),
        (b'{"kind": "continue", "model": "base", "text": "\\ud800"}', {}, 400),
        (b"\xff", {}, 400),
        (b" " * 70_000, {}, 413),
        (b"{}", {"Origin": "http://evil.example"}, 403),
        (b"{}", {"Host": "evil.example"}, 403),
        (b"{}", {"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_other_requests_are_refused(
    shared_client: TestClient, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = shared_client.post("/playground/ask", content=content, headers={**POST, **headers})
    assert answer.status_code == status


def test_only_our_own_page_may_ask(shared_client: TestClient) -> None:
    assert shared_client.get("/playground/ask").status_code == 405
    assert shared_client.post("/playground", headers=POST).status_code == 405
    assert shared_client.post("/playground/ask", headers={"Content-Type": "application/json"}).status_code == 403


def test_one_at_a_time_and_a_page_that_has_gone_stops_its_generation(
    shared_client: TestClient, process: ModelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground, "MAX_WAIT_SECONDS", 0.0)
    asyncio.run(leave_early(shared_client.app, process))


async def leave_early(app: ASGIApp, process: ModelProcess) -> None:
    """A page reads one message of 256, another page asks, and the first page is closed."""
    first = Page(app, max_tokens=256)
    await first.has_read.wait()
    child = process._children[0].pid
    second = Page(app)
    assert (await second.status(), "another question" in second.text) == (409, True)
    first.goes_on.set()
    first.is_gone.set()
    await first.task
    assert '"end"' not in first.text
    third = Page(app)
    while await third.status() == 409:  # until the token that was being computed is there
        await asyncio.sleep(0.01)
        third = Page(app)
    assert await third.status() == 200 and process._children[0].pid == child


class Page:
    """A request whose reader waits after the first message until it is told to read more."""

    def __init__(self, app: ASGIApp, **asked: Any) -> None:
        self._body = json.dumps({"kind": "continue", "model": "base", "text": TEXT, **asked}).encode()
        self.has_read, self.goes_on, self.is_gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._sent: list[Message] = []
        if not asked:
            self.goes_on.set()
        headers = {**POST, "Host": "localhost", "Content-Length": str(len(self._body))}
        scope: Scope = {
            **{"type": "http", "method": "POST", "path": "/playground/ask", "raw_path": b"/playground/ask"},
            **{"query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http"},
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body}
        await self.is_gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._sent.append(message)
        if message.get("body"):
            self.has_read.set()
            await self.goes_on.wait()

    async def status(self) -> int:
        """The status, when all has been read."""
        await self.task
        return int(self._sent[0]["status"])

    @property
    def text(self) -> str:
        """What has been read."""
        return b"".join(message.get("body", b"") for message in self._sent).decode()


def first_messages(process: ModelProcess, models: Path, count: int = 1, **more: Any) -> list[dict[str, Any]]:
    """The first messages of an answer, which is then given up."""

    async def read() -> list[dict[str, Any]]:
        exchange, found = process.ask(question("continue", models / "base", **more)), []
        try:
            async for message in exchange.messages():
                found.append(message)
                if len(found) == count:
                    break
        finally:
            exchange.close()
        return found

    return asyncio.run(read())


def test_a_process_that_dies_is_told(models: Path, process: ModelProcess) -> None:
    wait_until(lambda: not process._busy.locked())
    first_messages(process, models)
    wait_until(lambda: not process._busy.locked())
    os.kill(process._children[0].pid, signal.SIGSTOP)  # it takes the question, and dies before it answers
    died = process._children[0]
    exchange = process.ask(question("continue", models / "base"))

    async def read() -> dict[str, Any]:
        reading = asyncio.ensure_future(anext(exchange.messages().__aiter__()))
        await asyncio.sleep(0)
        os.kill(died.pid, signal.SIGKILL)
        return await reading

    message = asyncio.run(read())
    assert "the process that ran the model has ended" in message["error"] and message["end"] == "error"
    assert not process.is_running and not process._busy.locked()


def test_an_answer_that_takes_too_long_ends_with_its_process(models: Path) -> None:
    slow = ModelProcess(max_seconds=0.01)
    (message,) = first_messages(slow, models)
    assert message["error"].startswith("stopped: it took longer than 0.01 seconds")
    assert not slow.is_running and not slow._busy.locked()


def test_a_computation_that_does_not_end_is_killed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground_process, "GRACE_SECONDS", 0.0)
    stuck = ModelProcess()
    exchange = stuck.ask(question("continue", models / "base"))

    async def give_up() -> None:
        reading = asyncio.ensure_future(anext(exchange.messages().__aiter__()))
        while not stuck.is_running:
            await asyncio.sleep(0.01)
        reading.cancel()
        exchange.close()

    asyncio.run(give_up())
    wait_until(lambda: not stuck._busy.locked())
    assert not stuck.is_running


def test_the_process_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground_process, "COMMAND", (sys.executable, "-c", "import sys; sys.stdin.read()"))
    process = ModelProcess()
    child = playground_process._start()
    process._children.append(child)
    assert process.is_running
    del process
    gc.collect()
    assert child.poll() is not None


def test_the_process_ends_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground_child, "IDLE_SECONDS", 0.0)
    source, target = os.pipe()
    channel = Channel(source, sys.stderr)
    assert channel.question() is None
    os.write(target, b'stop\n{"kind": "chat"}\n{"kind": "continue"}\n')  # several at once
    assert [channel.question(), channel.question()] == [{"kind": "chat"}, {"kind": "continue"}]
    os.close(target)
    assert channel.question() is None
    os.close(source)
