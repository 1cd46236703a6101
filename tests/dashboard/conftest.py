"""Runs to look at, the application in this process, and a real browser where there is one."""

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

from fromscratch.dashboard.app import create_app
from fromscratch.dashboard.server import make_server
from fromscratch.formats.model_folder import write_model_folder
from fromscratch.judging import writing
from fromscratch.runs.directory import RunDirectory
from fromscratch.tokenizers.bytes import BytesTokenizer
from tests.command import run_command
from tests.finetuning.small import make_base, tune
from tests.goldens.cases import DATA
from tests.judging.conftest import graded, judged, write_answers
from tests.judging.server import JudgeServer
from tests.publishing.models import make_model
from tests.small import run_small, write_run_file

MAX_START_SECONDS = 30.0
MARKUP = "</pre><script>document.title='hit'</script>"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs: one that is done, one with another setting, one that was stopped."""
    folder = tmp_path_factory.mktemp("dashboard")
    file = write_run_file(folder)
    run_small(file, name="first")
    run_small(file, name="no-dropout", overrides=["model.dropout=0.0"])
    run_small(file, name="stopped", stop_after=10)
    return folder / "runs"


@pytest.fixture
def runs(trained_runs: Path, tmp_path: Path) -> Path:
    """A copy of the trained runs that the test may change."""
    return Path(shutil.copytree(trained_runs, tmp_path / "runs", symlinks=True))


@pytest.fixture
def client(runs: Path) -> TestClient:
    """The application over the runs; an exception in a page fails the test."""
    return open_client(runs)


def open_client(folder: Path, **options: Any) -> TestClient:
    """The application over a folder, called as ``http://localhost``."""
    return TestClient(create_app(folder, **options), base_url="http://localhost", follow_redirects=False)


def ask(app: ASGIApp, path: bytes, **headers: str) -> tuple[int, str]:
    """Sends a GET request for a path as it stands, as no browser and no client would; returns status and body."""
    sent: list[Message] = []
    named = {"Host": "localhost", **headers}
    scope: Scope = {
        **{"type": "http", "method": "GET", "path": unquote(path.decode("latin-1")), "raw_path": path},
        **{"query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http"},
        "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()],
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:]).decode()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder on a free port of this machine, in a thread; yields the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(create_app(folder))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://localhost:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(MAX_START_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves folders until the test ends; returns the address of each."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(served(folder))


def wait_until(holds: Callable[[], bool], *, seconds: float = MAX_START_SECONDS) -> None:
    """Waits until something holds; fails if it takes longer than any machine needs."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium of this machine, driven by Playwright, whose event loop runs until the module ends."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    found = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Watched:
    """A page of the browser, and everything that must not happen in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address, self.problems = page, address, list[str]()
        page.on("console", self._read)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._check)

    def _read(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _check(self, request: Any) -> None:
        if not request.url.startswith((self.address, "blob:", "data:")):
            self.problems.append(f"request to {request.url}")

    def open(self, path: str) -> Any:
        """Opens a path of the site."""
        self.page.goto(self.address + path)
        return self.page


@pytest.fixture
def watched(browser: Any, serve: object) -> Iterator[Callable[..., Watched]]:
    """Opens pages, and closes them before the server ends; none may log an error or ask another machine."""
    contexts, pages = [], list[Watched]()

    def open_page(address: str, *, phone: bool = False, dark: bool = False) -> Watched:
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        context = browser.new_context(
            viewport=size, color_scheme="dark" if dark else "light", has_touch=phone, device_scale_factor=1
        )
        contexts.append(context)
        pages.append(Watched(context.new_page(), address))
        return pages[-1]

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for page in pages for problem in page.problems] == []


def copy_of_stopped_run(folder: Path) -> RunDirectory:
    """The run directory that an earlier version wrote, stopped at step 20 of 30."""
    return RunDirectory(Path(shutil.copytree(DATA / "stopped-run", folder, symlinks=True)))


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def judged_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with two results folders: a batch and pairs."""
    folder = tmp_path_factory.mktemp("judged")
    plain = graded(2, 70)
    files = write_answers(folder, 24, small=graded(1, 30), large=lambda number: f"{plain(number)} {MARKUP}")
    with pytest.MonkeyPatch.context() as patch, JudgeServer() as server, ThreadPoolExecutor(1) as thread:
        patch.setattr(writing, "draw_report", lambda *_, **__: None)
        for out, mode in (("judged", "batch"), ("judges/by pairs", "pairs")):  # beside the event loop of a browser
            thread.submit(judged, server, files, folder / "runs" / out, "--mode", mode).result()
    return folder / "runs"
