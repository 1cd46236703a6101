"""Requests to a judge: any endpoint with OpenAI's protocol for chat completions."""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fromscratch.errors import UsageError
from fromscratch.hub.requests import TEMPORARY_STATUS_CODES
from fromscratch.judging.prompts import Messages

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

OPENAI, OPENAI_URL, OPENAI_KEY = "openai", "https://api.openai.com/v1", "OPENAI_API_KEY"
UNSUPPORTED_STATUS_CODES = {400, 422, 501}
REFUSED_STATUS_CODES = {401, 403, 404}
MAX_REASON_CHARACTERS = 300

LOG_PROBABILITIES, STRUCTURE, TEMPERATURE, MAX_TOKENS = "logprobs", "response_format", "temperature", "max_tokens"
OPTIONAL = {
    LOG_PROBABILITIES: ("logprobs",),
    STRUCTURE: ("response_format", "json_schema", "structured output"),
    TEMPERATURE: ("temperature",),
    MAX_TOKENS: ("max_tokens",),  # newer models of OpenAI take max_completion_tokens instead
}
"""Parameters that not every endpoint takes, and the words by which its error message is recognised."""


@dataclass(frozen=True)
class JudgeModel:
    """Who judges: a model behind an endpoint."""

    url: str
    """The address before ``/chat/completions``."""
    model: str
    key: str = field(repr=False)
    """Empty: none is sent. Never written anywhere."""


def find_judge(name: str, key_variable: str | None) -> JudgeModel:
    """Reads ``openai:MODEL`` or ``URL#MODEL``.

    Args:
        key_variable: the environment variable that holds the key. By default OPENAI_API_KEY for ``openai:MODEL``, and
            none for a URL, so that a key of OpenAI is not sent elsewhere.

    Raises:
        UsageError: it has another form, or the key is missing.
    """
    url, hash_sign, model = name.rpartition("#")
    if name.startswith(f"{OPENAI}:"):
        url, model = os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, name.removeprefix(f"{OPENAI}:")
        key_variable = key_variable or OPENAI_KEY
    elif not hash_sign:
        raise UsageError(f"--judge {name}: write openai:MODEL, or URL#MODEL, such as http://localhost:11434/v1#llama3")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not model:
        raise UsageError(f"--judge {model or name}: expected an http or https address and the name of a model")
    if parts.username is not None or parts.password is not None or parts.query:
        raise UsageError(
            "--judge: the address may hold no password and no query, because it is recorded; give the key with "
            "--key-variable"
        )
    key = os.environ.get(key_variable, "") if key_variable else ""
    if key_variable and not key and url in {OPENAI_URL, f"{OPENAI_URL}/"}:
        raise UsageError(f"--judge {name}: needs a key in the environment variable {key_variable}")
    return JudgeModel(url.rstrip("/"), model, key)


@dataclass(frozen=True)
class Completion:
    """One reply."""

    text: str
    log_probabilities: dict[str, float]
    """Of the most probable first tokens, in nats; empty if the endpoint gives none."""
    input_tokens: int | None
    output_tokens: int | None
    """None: the endpoint does not count tokens."""
    is_cut: bool
    """Whether it ended at the maximum number of tokens."""
    model: str
    """The model that replied, as the endpoint names it, such as a dated version; empty if it does not."""


class NoReplyError(Exception):
    """A request without a usable reply."""

    def __init__(self, reason: str, *, retry_after: str = "", is_temporary: bool = True, may_cost: bool = False):
        super().__init__(reason)
        self.retry_after = retry_after
        self.is_temporary = is_temporary
        self.may_cost = may_cost
        """Whether the endpoint may have generated a reply that did not arrive."""


class Endpoint:
    """Sends requests. What the endpoint does not take is left out from then on, with a notice."""

    def __init__(
        self,
        judge: JudgeModel,
        client: "AsyncClient",
        *,
        timeout_seconds: float,
        refused: set[str],
        notice: Callable[[str], None],
    ) -> None:
        self._judge, self._client, self._timeout_seconds, self._notice = judge, client, timeout_seconds, notice
        self.refused = refused
        """The parameters of ``OPTIONAL`` that it does not take."""
        self._has_replied = False

    async def ask(self, messages: Messages, parameters: dict[str, Any]) -> Completion:
        """Returns the reply to one request. Parameters that the endpoint has refused are left out.

        Raises:
            NoReplyError: the request may succeed later, or another one may.
            UsageError: no request can succeed: no access, or no such model.
        """
        while True:
            request = self._request(messages, parameters)
            response = await self._send(request)
            if response.status_code == 200:
                completion = self._completion(response)
                self._has_replied = True
                return completion
            if not self._leaves_out(response, request):
                raise self._error(response)

    def _request(self, messages: Messages, parameters: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in parameters.items() if name not in self.refused}
        if LOG_PROBABILITIES not in given:
            given.pop("top_logprobs", None)
        if MAX_TOKENS in self.refused:
            given["max_completion_tokens"] = parameters[MAX_TOKENS]
        return {"model": self._judge.model, "messages": messages, **given}

    async def _send(self, request: dict[str, Any]) -> "Response":
        import httpx2

        headers = {"Content-Type": "application/json"}
        if self._judge.key:
            headers["Authorization"] = f"Bearer {self._judge.key}"
        body = json.dumps(request)  # escapes lone surrogates, which have no UTF-8
        try:
            async with asyncio.timeout(self._timeout_seconds):  # of everything; the client's is of each read
                return await self._client.post(f"{self._judge.url}/chat/completions", content=body, headers=headers)
        except (TimeoutError, httpx2.TimeoutException):
            raise NoReplyError(f"no reply within {self._timeout_seconds:g} s", may_cost=True) from None
        except httpx2.ConnectError:
            raise NoReplyError(f"{self._judge.url} accepts no connection; is the server running?") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise NoReplyError(f"the connection failed ({type(error).__name__})", may_cost=True) from None

    def _completion(self, response: "Response") -> Completion:
        """Raises NoReplyError for what is not a chat completion."""
        try:
            body = response.json()
            choice = body["choices"][0]
            text = choice["message"]["content"]
            listed = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
            log_probabilities: dict[str, float] = {}
            for entry in listed:
                log_probabilities.setdefault(str(entry["token"]), float(entry["logprob"]))
            usage = body.get("usage") or {}
            counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = self._message(response)
            raise NoReplyError(f"the reply is no chat completion of OpenAI's protocol{said}", may_cost=True) from None
        if text is not None and not isinstance(text, str):
            raise NoReplyError("the content of the reply is not text", may_cost=True)
        model = body.get("model")
        return Completion(
            text or "",
            log_probabilities,
            counts[0],
            counts[1],
            is_cut=choice.get("finish_reason") == "length",
            model=model if isinstance(model, str) else "",
        )

    def _leaves_out(self, response: "Response", request: dict[str, Any]) -> bool:
        """Whether the endpoint named a parameter that it does not take, in answer to the first requests."""
        if response.status_code not in UNSUPPORTED_STATUS_CODES or self._has_replied:
            return False
        message = response.text.lower()
        for name, words in OPTIONAL.items():
            if name in request and any(word in message for word in words):
                self.leave_out(name, f"the endpoint answered {response.status_code}")
                return True
        return False

    def leave_out(self, name: str, reason: str) -> None:
        """Leaves a parameter out from now on, and says so."""
        self.refused.add(name)
        instead = "; max_completion_tokens takes its place" if name == MAX_TOKENS else ""
        self._notice(f"notice: requests leave out {name}: {reason}{instead}")

    def _error(self, response: "Response") -> Exception:
        said = self._message(response)
        status = response.status_code
        if status in REFUSED_STATUS_CODES:
            hint = (
                "check the address (many servers need /v1 at its end) and the model"
                if status == 404
                else "check the key (--key-variable) and what it permits"
            )
            return UsageError(f"{self._judge.url} answered {status}{said}; {hint}")
        return NoReplyError(
            f"the endpoint answered {status}{said}",
            retry_after=response.headers.get("Retry-After", ""),
            is_temporary=status in TEMPORARY_STATUS_CODES or status >= 500,
        )

    def _message(self, response: "Response") -> str:
        """Returns the endpoint's own words, on one line and without the key."""
        text = response.text
        with suppress(ValueError, LookupError, TypeError):
            text = str(json.loads(text)["error"]["message"])
        if self._judge.key:
            text = text.replace(self._judge.key, "***")
        text = " ".join(text.split())[:MAX_REASON_CHARACTERS]
        return f": {text}" if text else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
