"""The process that runs models for the playground, as the server sees it.

A process, not a thread: torch and the weights stay out of the server's memory, a computation that does not end can be
killed, and one that runs out of memory takes no page down. It starts with the first question, and ends by itself
when nobody has asked for some minutes.

Each message is one line of JSON, and the process sends the next one only when it is asked to. So a generation that
nobody reads any more stops at its next token.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Any

COMMAND = (sys.executable, "-P", "-m", "fromscratch.dashboard.playground_child")
MAX_SECONDS = 120.0
GRACE_SECONDS = 2.0
"""A question that is given up may take so long to reach its next message; then the process is killed."""
POLL_SECONDS = 0.05
GO, STOP = "go", "stop"
END, ERROR = "end", "error"
"""Keys of messages: the last one has a reason under ``end``; a failure also a sentence under ``error``."""


class BusyError(Exception):
    """Another question is being answered."""


class ModelProcess:
    """Answers one question at a time.

    Args:
        max_seconds: time for one answer, loading of the model included.
    """

    def __init__(self, *, max_seconds: float = MAX_SECONDS) -> None:
        self.max_seconds = max_seconds
        self._busy = threading.Lock()
        self._children: list[subprocess.Popen[str]] = []
        weakref.finalize(self, _end_all, self._children)  # also at the end of the program

    def ask(self, question: dict[str, Any]) -> "Exchange":
        """Begins a question. Raises BusyError. The exchange must be closed."""
        if not self._busy.acquire(blocking=False):
            raise BusyError
        return Exchange(self, question)

    async def wait_until_free(self, max_seconds: float) -> None:
        """Returns when no question is being answered, or after some seconds."""
        ends_at = time.monotonic() + max_seconds
        while self._busy.locked() and time.monotonic() < ends_at:
            await asyncio.sleep(POLL_SECONDS)

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return bool(self._children) and self._children[0].poll() is None

    def turn(self, line: str) -> dict[str, Any]:
        """Sends a line and returns the next message; starts the process if there is none."""
        if not self.is_running:
            self.end()
            self._children.append(_start())
        child = self._children[0]
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if answer:
            return dict(json.loads(answer))
        self.end()
        reason = f"the process that ran the model has ended ({_reason(child.returncode)})"
        return {ERROR: f"{reason}; ask again to start another", END: ERROR}

    def stop_question(self) -> None:
        """Tells the process, which waits to be asked for the next message, that there is no more interest."""
        for child in self._children:
            assert child.stdin is not None
            with suppress(OSError, ValueError):
                child.stdin.write(STOP + "\n")
                child.stdin.flush()

    def end(self) -> None:
        """Kills the process, if there is one."""
        _end_all(self._children)

    def release(self) -> None:
        """Lets the next question in."""
        self._busy.release()


class Exchange:
    """One question and the messages that answer it."""

    def __init__(self, process: ModelProcess, question: dict[str, Any]) -> None:
        self._process = process
        self._question = question
        self._turn: Future[dict[str, Any]] | None = None
        self._is_open = True

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the messages until the last one. After too long, the process is killed and the last one says so."""
        ends_at = time.monotonic() + self._process.max_seconds
        line, message = json.dumps(self._question), dict[str, Any]()
        while END not in message:
            self._turn = _in_thread(partial(self._process.turn, line))
            try:
                answer = asyncio.shield(asyncio.wrap_future(self._turn))
                message = await asyncio.wait_for(answer, ends_at - time.monotonic())
            except TimeoutError:
                self._process.end()
                seconds = f"{self._process.max_seconds:g}"
                message = {ERROR: f"stopped: it took longer than {seconds} seconds; ask for fewer tokens", END: ERROR}
            if END in message:
                self._close(whole=True)
            yield message
            line = GO

    def close(self) -> None:
        """Gives the question up if it has not been answered."""
        self._close(whole=False)

    def _close(self, *, whole: bool) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if whole or self._turn is None:
            self._process.release()
        else:
            threading.Thread(target=self._settle, daemon=True).start()

    def _settle(self) -> None:
        assert self._turn is not None
        done, _ = wait([self._turn], GRACE_SECONDS)
        if not done:
            self._process.end()
        elif END not in self._turn.result():
            self._process.stop_question()
        self._process.release()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},  # a model in a folder needs no network
        start_new_session=True,  # Ctrl-C ends the server, which ends the process
    )


def _end_all(children: list[subprocess.Popen[str]]) -> None:
    for child in list(children):
        with suppress(ValueError):  # another thread has just ended it
            children.remove(child)
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError, ValueError):
                    pipe.close()


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}; perhaps the machine has too little memory for the model"
    return f"exit code {code}"


def _in_thread(compute: Callable[[], dict[str, Any]]) -> Future[dict[str, Any]]:
    """Runs something in a thread that no exit of the program waits for."""
    future = Future[dict[str, Any]]()

    def run() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
