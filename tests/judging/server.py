"""A local judge with OpenAI's protocol, and with faults on request."""

import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

ANSWER = re.compile(r"Answer(?: ([A-Z]))?:\n<(data-\w+)>\n(.*?)\n</\2>", re.DOTALL)
HANG, CLOSE = "hang", "close"

Prefers = Callable[[str, int, int], float]
"""From an answer's text, its place and the number of places to how much the judge likes it, 0 to 100."""


def answers_in(request: dict[str, Any]) -> list[str]:
    """The answers of a prompt, in the order in which they are shown."""
    return [text for _, _, text in ANSWER.findall(request["messages"][1]["content"])]


def by_quality(text: str, place: int, places: int) -> float:
    """Likes what says ``quality N``."""
    match = re.search(r"quality (\d+)", text)
    return float(match[1]) if match else 50.0


@dataclass
class JudgeServer:
    """Judges by ``prefers``. Faults are used up by the requests, one each."""

    prefers: Prefers = by_quality
    faults: list[Any] = field(default_factory=list)
    """``hang``, ``close``, (status, body, headers), or a text that takes the place of the reply; None is no fault."""
    fails_on: str = "\0"
    """A prompt with these words gets a reply that is no judgement."""
    refuses: tuple[str, ...] = ()
    """Parameters that are answered with 400."""
    gives_log_probabilities: bool = True
    first_tokens: dict[str, float] | None = None
    """The probabilities of the first token, in place of those of A and B."""
    model: str = "scripted"
    """Who the replies say has replied."""
    counts_tokens: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.closing, self._lock = threading.Event(), threading.Lock()
        return self

    def __exit__(self, *_error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def name(self) -> str:
        """What ``--judge`` takes."""
        return f"http://127.0.0.1:{self._server.server_port}/v1#scripted"

    def next_fault(self, request: dict[str, Any], headers: dict[str, str]) -> Any:
        """Notes a request; returns its fault."""
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            return self.faults.pop(0) if self.faults else None

    def reply_to(self, request: dict[str, Any]) -> dict[str, Any]:
        """A chat completion."""
        answers = answers_in(request)
        likes = [self.prefers(text, place, len(answers)) for place, text in enumerate(answers)]
        prompt = request["messages"][1]["content"]
        choice: dict[str, Any] = {}
        if "integer number only" in prompt:
            text = f"{min(100, max(0, round(likes[0])))}"
        elif "Which answer is better" in prompt:
            p = 1 / (1 + math.exp((likes[1] - likes[0]) / 10))
            text = "A" if p > 0.5 else "B"
            if request.get("logprobs") and self.gives_log_probabilities:
                tokens = self.first_tokens or {"A": 0.9 * p, "B": 0.9 * (1 - p), "The": 0.1}
                listed = [{"token": token, "logprob": math.log(max(1e-9, value))} for token, value in tokens.items()]
                choice["logprobs"] = {"content": [{"token": text, "top_logprobs": listed}]}
        else:
            scores = {
                "ABCDEFGH"[place]: {"comment": "because", "score": min(100, max(0, round(like)))}
                for place, like in enumerate(likes)
            }
            text = json.dumps(scores)
        if self.fails_on in prompt:
            text = "I would rather not say."
        usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if self.counts_tokens else {}
        message = {"role": "assistant", "content": text}
        return {"model": self.model, "choices": [{"message": message, **choice}], **usage}


def _handler_of(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = server.next_fault(request, dict(self.headers))
            refused = [name for name in server.refuses if name in request]
            if fault == HANG:
                server.closing.wait(30)
            if fault in (HANG, CLOSE):
                self.close_connection = True
            elif isinstance(fault, tuple):
                self._answer(*fault)
            elif refused:
                self._answer(400, json.dumps({"error": {"message": f"Unsupported parameter: '{refused[0]}'"}}), {})
            else:
                body = server.reply_to(request)
                if isinstance(fault, str):
                    body["choices"][0]["message"]["content"] = fault
                self._answer(200, json.dumps(body), {})

        def _answer(self, status: int, body: str, headers: dict[str, str]) -> None:
            data = body.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    return Handler
