"""The playground: what a model predicts next, how sampling reshapes it, chat, classification."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fromscratch.dashboard.playground_models import models_of
from fromscratch.dashboard.playground_process import BusyError, Exchange, ModelProcess
from fromscratch.dashboard.site import Part, RefusedRunError, Site, json_response
from fromscratch.files import to_strict_json

MAX_PROMPT_BYTES = 20_000
MAX_TOKENS = 2_000
MAX_NEW_TOKENS = 256
MAX_TURNS = 100
MAX_WAIT_SECONDS = 3.0
"""A question that was cancelled ends within this time; the next one waits for it."""
MAX_NAME = 2_000
Text = Annotated[str, Field(max_length=MAX_PROMPT_BYTES)]


class Question(BaseModel):
    """What the page may ask; ranges of sampling settings are checked by ``Sampling``."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["continue", "chat", "classify"]
    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    """Percent-encoded path below the folder of runs."""
    checkpoint: Annotated[str, Field(pattern=r"^(best|latest|step-\d{1,12})?$")] = ""
    text: Text
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MAX_TOKENS)] = []
    """Ids that follow the text, as they were chosen."""
    history: Annotated[list[Annotated[list[Text], Field(min_length=2, max_length=2)]], Field(max_length=MAX_TURNS)] = []
    """Messages and answers of a chat."""
    max_tokens: Annotated[int, Field(ge=0, le=MAX_NEW_TOKENS)] = 0
    temperature: float = 1.0
    top_k: Annotated[int, Field(lt=2**31)] | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Messages(StreamingResponse):
    """Streams the messages of an exchange, one line of JSON each; ends it when the page has gone."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(_lines(exchange), media_type="application/x-ndjson")
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


def part(site: Site) -> Part:
    """The page ``/playground``, and the answers to its questions."""
    models, process = models_of(site), ModelProcess()

    async def show(request: Request) -> Response:
        choices = await run_in_threadpool(models.choices)
        limits = {"prompt": MAX_PROMPT_BYTES, "tokens": MAX_NEW_TOKENS, "seconds": f"{process.max_seconds:g}"}
        return site.page(request, "playground.html", choices=choices, limits=limits)

    async def ask(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refusal(415, "the question must be JSON (Content-Type: application/json)")
        try:
            question = Question.model_validate_json(await request.body())
            source = await run_in_threadpool(models.source, _name(question.model), question.checkpoint)
        except ValidationError as error:
            return _refusal(400, _first_problem(error))
        except HTTPException as error:
            return _refusal(error.status_code, error.detail)
        except RefusedRunError as error:
            return _refusal(403, str(error))
        if (size := len(question.text.encode())) > MAX_PROMPT_BYTES:
            return _refusal(413, f"the text has {size:,} bytes; the playground takes up to {MAX_PROMPT_BYTES:,}")
        await process.wait_until_free(MAX_WAIT_SECONDS)
        try:
            exchange = process.ask({**question.model_dump(exclude={"model", "checkpoint"}), "source": source})
        except BusyError:
            return _refusal(409, "a model is answering another question; wait until it ends, or cancel it")
        return Messages(exchange)

    return Part(
        (
            Route("/playground", show, methods=["GET"]),
            Route("/playground/ask", ask, methods=["POST"]),
        ),
        entry=("/playground", "Playground"),
    )


async def _lines(exchange: Exchange) -> AsyncIterator[str]:
    async for message in exchange.messages():
        yield to_strict_json(message) + "\n"


def _refusal(status: int, reason: str) -> Response:
    return json_response({"error": reason}, status=status)


def _name(quoted: str) -> str:
    return unquote(quoted, errors="surrogateescape")


def _first_problem(error: ValidationError) -> str:
    found: dict[str, Any] = dict(error.errors(include_url=False, include_context=False, include_input=False)[0])
    where = ".".join(map(str, found["loc"]))
    return f"{where}: {found['msg']}" if where else f"not a question: {found['msg']}"
