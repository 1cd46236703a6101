"""The playground's answers: distributions, texts, chat, classes; limits, hostile input, one at a time, cancelling."""

import asyncio
import gc
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

from fromscratch.dashboard import playground_child, playground_process
from fromscratch.dashboard.playground_child import Answers, Channel, Notices
from fromscratch.dashboard.playground_process import ModelProcess
from fromscratch.errors import UsageError
from fromscratch.finetuning.classifier_report import classify_texts
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.formats.model_sources import open_model
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.command import run_command
from tests.dashboard.conftest import open_client, wait_until
from tests.finetuning.small import FORMAT, make_base, tune
from tests.publishing.models import make_model
from tests.test_architecture import loaded_after_importing

POST = {"Origin": "http://localhost", "Content-Type": "application/json"}
TEXT = "the cat sees"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: a base model, one tuned on instructions, a classifier; and an imported model."""
    folder = tmp_path_factory.mktemp("playground")
    make_base(folder)
    tune(folder, "tuned", "data.epochs=1")
    rows = [f"{name},{number} {name}" for name in ("cat", "dog") for number in range(30)]
    (folder / "texts.csv").write_text("\n".join(["label,text", *rows]))
    classify = ("finetune", "classify", folder / "runs" / "base", "--data", folder / "texts.csv", "--name", "classes")
    fast = ("--runs-dir", folder / "runs", "--device", "cpu", "--quiet", "--set", "train.precision=fp32", "--epochs", 1)
    ended = run_command(*map(str, (*classify, *fast)))
    assert ended.code == 0, ended.err
    write_model_folder(folder / "runs" / "imported", *make_model(), BytesTokenizer(), {})
    return folder / "runs"


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What answers in the process of the playground, in this one."""
    return Answers(Notices())


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


def question(kind: str, source: Path, text: str = TEXT, **more: Any) -> dict[str, Any]:
    usual = {"tokens": [], "history": [], "max_tokens": 0, "temperature": 1.0, "top_k": None, "top_p": None}
    return {"kind": kind, "source": str(source), "text": text, **usual, "min_p": None, "seed": 3, **more}


def answer_of(answers: Answers, *words: Any, **more: Any) -> list[dict[str, Any]]:
    """All messages of an answer."""
    found: list[dict[str, Any]] = []
    last = answers.answer(question(*words, **more), found.append)
    return json.loads(json.dumps([*found, last]))


def ask(client: TestClient, **asked: Any) -> tuple[int, list[dict[str, Any]]]:
    answer = client.post("/playground/ask", json={"kind": "continue", "text": TEXT, **asked}, headers=POST)
    return answer.status_code, [json.loads(line) for line in answer.text.splitlines()]


def test_the_distribution_and_the_surprises_are_those_of_the_model(answers: Answers, models: Path) -> None:
    first, last = answer_of(answers, "continue", models / "base")
    loaded = open_model(str(models / "base"), find_hardware("cpu"))
    with torch.inference_mode():
        logp = loaded.model(torch.tensor([list(TEXT.encode())]))[0].double().log_softmax(-1)
    bits = [token["bits"] for token in first["prompt"]]
    expected = [-float(logp[place, byte]) / math.log(2) for place, byte in enumerate(TEXT.encode()[1:])]
    assert bits[0] is None and bits[1:] == pytest.approx(expected, rel=1e-4)
    found = last["next"]
    assert {one["id"]: one["logp"] for one in found["top"]} == pytest.approx(
        dict(enumerate(logp[-1].tolist())), rel=1e-4
    )
    assert found["rest"] == [] and found["vocabulary"] == 257
    assert found["entropy"] == pytest.approx(float(-(logp[-1].exp() * logp[-1]).sum()) / math.log(2), rel=1e-4)


def test_tokens_beyond_the_most_probable_come_in_bins_that_keep_their_mass_at_every_temperature(
    answers: Answers, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fromscratch.dashboard.playground_text.MAX_SHOWN", 10)
    found = answer_of(answers, "continue", models / "imported")[-1]["next"]
    monkeypatch.undo()
    whole = [one["logp"] for one in answer_of(answers, "continue", models / "imported")[-1]["next"]["top"]]
    assert len(found["top"]) == 10 and sum(count for count, _ in found["rest"]) == 247
    for temperature in (0.5, 1.0, 2.0):
        mass = sum(count * math.exp(mean / temperature) for count, mean in found["rest"])
        assert mass == pytest.approx(sum(math.exp(one / temperature) for one in whole[10:]), rel=0.01)


def test_one_token_at_a_time_gives_what_all_at_once_gives(answers: Answers, models: Path) -> None:
    settings = {"temperature": 1.3, "top_k": 40}
    whole = answer_of(answers, "continue", models / "base", max_tokens=6, **settings)
    chosen: list[int] = []
    for _ in range(6):
        (_, token, last) = answer_of(answers, "continue", models / "base", tokens=chosen, max_tokens=1, **settings)
        chosen.append(token["token"]["id"])
    assert chosen == [message["token"]["id"] for message in whole[1:-1]]
    fresh = answer_of(Answers(Notices()), "continue", models / "base", tokens=chosen)
    assert [one["bits"] for one in fresh[0]["prompt"][-6:]] == pytest.approx(
        [message["token"]["bits"] for message in whole[1:-1]], rel=1e-3
    )
    for other in (whole[-1], last):
        assert [one["logp"] for one in other["next"]["top"]] == pytest.approx(
            [one["logp"] for one in fresh[-1]["next"]["top"]], abs=1e-3
        )


def test_a_token_is_chosen_by_the_sampling_settings(answers: Answers, models: Path) -> None:
    before = answer_of(answers, "continue", models / "base")[-1]["next"]["top"]
    _, greedy, _ = answer_of(answers, "continue", models / "base", max_tokens=1, temperature=0.0)
    assert greedy["token"]["id"] == before[0]["id"] and greedy["token"]["chance"] == 1.0
    _, found, _ = answer_of(answers, "continue", models / "base", max_tokens=1, top_k=3, seed=8)
    logits = torch.tensor([[one["logp"] for one in before]])
    expected = dict(
        zip([one["id"] for one in before], Sampling(top_k=3).probabilities(logits)[0].tolist(), strict=True)
    )
    assert found["token"]["chance"] == pytest.approx(expected[found["token"]["id"]], rel=1e-4)


def test_a_text_longer_than_the_context_is_cut_and_the_answer_says_so(answers: Answers, models: Path) -> None:
    first, *tokens, last = answer_of(answers, "continue", models / "imported", TEXT * 10, max_tokens=40)
    assert len(first["prompt"]) == 32 and "sees at most the last 32" in first["notices"][0]
    assert len(tokens) == 40 and len(last["next"]["top"]) == 257


def test_an_empty_prompt_begins_a_document(answers: Answers, models: Path) -> None:
    first, _ = answer_of(answers, "continue", models / "base", "")
    assert [token["name"] for token in first["prompt"]] == ["end of text"]


def test_half_a_character_is_named_and_shown_as_u_fffd(answers: Answers, models: Path) -> None:
    first, last = answer_of(answers, "continue", models / "base", "é")
    assert [one["text"] for one in first["prompt"]] == ["\ufffd", "\ufffd"]
    assert first["prompt"][0]["name"] == "part of a character, bytes c3"
    names = {one["id"]: one.get("name") for one in last["next"]["top"]}
    assert names[0xFF] == "part of a character, bytes ff" and names[256] == "end of text" and names[65] is None


def test_a_failure_leaves_no_wrong_state_behind(
    answers: Answers, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = answer_of(answers, "continue", models / "base", "a house", max_tokens=3, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("fromscratch.generation.decoders.CachedDecoder.next_logits", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answer_of(answers, "continue", models / "base", "a house", max_tokens=3, seed=1)
    assert answer_of(answers, "continue", models / "base", "a house", max_tokens=3, seed=1) == right


def test_chat_uses_the_format_of_the_tuning(answers: Answers, models: Path) -> None:
    first, *parts, last = answer_of(answers, "chat", models / "tuned", "Say cat 1.", max_tokens=8, temperature=0.0)
    assert first["prompt"] == FORMAT.replace("{instruction}", "Say cat 1.").replace("{input}", "")
    assert last["answer"] == "".join(part["text"] for part in parts) and last["end"] == "answered"
    history = [["Hello", "Good day"]]
    first, *_ = answer_of(answers, "chat", models / "base", "Who?", history=history, max_tokens=2)
    assert "User: Hello\nAssistant:Good day\nUser: Who?\nAssistant:" in first["prompt"]
    assert "was not tuned on instructions" in first["notices"][0]


def test_a_classifier_gives_probabilities_and_only_classifies(answers: Answers, models: Path) -> None:
    (found,) = answer_of(answers, "classify", models / "classes", "3 cat")
    loaded = open_model(str(models / "classes"), find_hardware("cpu"), may_classify=True)
    assert found["probabilities"] == pytest.approx(classify_texts(loaded, ["3 cat"])[0]["probabilities"])
    assert found["class"] == max(found["probabilities"], key=found["probabilities"].get) and found["calibrated"]
    with pytest.raises(UsageError, match="classifies texts; open it under 'Classify'"):
        answer_of(answers, "continue", models / "classes")
    with pytest.raises(UsageError, match="is a language model; open it under 'Next token'"):
        answer_of(answers, "classify", models / "base")


def test_a_checkpoint_can_be_named_and_a_changed_run_is_read_anew(
    answers: Answers, models: Path, tmp_path: Path
) -> None:
    steps = sorted(path.name for path in (models / "base" / "checkpoints").glob("step-*"))
    by_step = [answer_of(answers, "continue", f"{models / 'base'}@step-{int(name[5:])}")[0] for name in steps]
    assert [one["model"]["step"] for one in by_step] == [int(name[5:]) for name in steps] and len(steps) > 1
    run = Path(shutil.copytree(models / "base", tmp_path / "run", symlinks=True))
    assert answer_of(answers, "continue", run)[0]["model"]["step"] == int(
        (run / "checkpoints/best").readlink().name[5:]
    )
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "best").symlink_to(steps[0])
    assert answer_of(answers, "continue", run)[0]["model"]["step"] == int(steps[0][5:])


def test_weights_that_are_too_large_are_refused_before_they_are_read(
    answers: Answers, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground_child, "MAX_WEIGHTS_BYTES", 1_000)
    copied = Path(shutil.copytree(models / "imported", tmp_path / "copied"))
    with pytest.raises(UsageError, match=r"the playground opens up to 1 kB"):
        answer_of(answers, "continue", copied)


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
    shared_client: TestClient, process: ModelProcess
) -> None:
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
