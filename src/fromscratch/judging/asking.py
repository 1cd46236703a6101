"""Asks a judge: several requests at a time, repeated where they fail, never beyond the cap on dollars.

Every reply is appended to the folder's ``replies.jsonl`` and on the disk before the next request. A task that was
judged is not asked again; one that failed is, by the next command.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fromscratch.errors import EXIT_STOPPED, FromScratchError, UsageError
from fromscratch.files import readable_seconds
from fromscratch.hub.requests import wait_seconds
from fromscratch.judging.budget import Budget, max_input_tokens
from fromscratch.judging.endpoint import LOG_PROBABILITIES, Completion, Endpoint, JudgeModel, NoReplyError
from fromscratch.judging.folder import JUDGED, ResultsFolder
from fromscratch.judging.modes import Mode, RequestSettings, Task
from fromscratch.judging.prompts import Messages, corrected
from fromscratch.judging.replies import InvalidReplyError, letters
from fromscratch.runs.records import RecordWriter, now_as_text

INVALID, NO_REPLY = "invalid reply", "no reply"
MAX_WAIT_SECONDS = 600.0
MAX_FAILURES_IN_A_ROW = 3
sleep = asyncio.sleep


class JudgeStoppedError(FromScratchError):
    """The cap or a rate limit ended the command early; the same command continues later."""

    exit_code: ClassVar[int] = EXIT_STOPPED


class JudgeUnreachableError(FromScratchError):
    """The endpoint does not reply; exit code 1."""


@dataclass(frozen=True)
class AskSettings:
    """How to ask. Nothing here changes what is asked."""

    concurrency: int
    attempts: int
    timeout_seconds: float


@dataclass
class Progress:
    """How far a command has come."""

    total: int
    judged: int
    """Including those of earlier commands."""
    failed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    """Why tasks failed, by key."""


@dataclass
class Interview:
    """One command's requests to a judge."""

    judge: JudgeModel
    mode: Mode
    requests: RequestSettings
    settings: AskSettings
    folder: ResultsFolder
    budget: Budget
    notice: Callable[[str], None]
    on_progress: Callable[[Progress], None]

    def run(self, tasks: Sequence[Task]) -> tuple[Progress, Exception | None]:
        """Asks what has not been judged yet. Returns how far it came, and what ended it early.

        Raises OSError when a reply cannot be written.
        """
        judged = self.folder.judgements(tasks)
        missing = [task for task in tasks if task.key not in judged]
        self.progress = Progress(len(tasks), len(tasks) - len(missing))
        self._stopped: Exception | None = None
        self._failures_in_a_row = 0
        self._paused_until = 0.0
        self._told: set[str] = set()
        if missing:
            with RecordWriter(self.folder.replies) as self._writer:
                asyncio.run(self._ask_all(missing))
        return self.progress, self._stopped

    async def _ask_all(self, tasks: list[Task]) -> None:
        import httpx2

        limits = httpx2.Limits(max_connections=self.settings.concurrency)
        async with httpx2.AsyncClient(timeout=self.settings.timeout_seconds, limits=limits) as client:
            self._endpoint = Endpoint(
                self.judge,
                client,
                timeout_seconds=self.settings.timeout_seconds,
                refused={str(name) for name in self.folder.description["refused_parameters"]},
                notice=self.notice,
            )
            queue = iter(tasks)
            await self._work(iter([next(queue)]))  # alone: it finds out what the endpoint takes
            async with asyncio.TaskGroup() as group:
                for _ in range(self.settings.concurrency):
                    group.create_task(self._work(queue))

    async def _work(self, queue: Iterator[Task]) -> None:
        """Takes tasks until there are none, or until something ends the command."""
        for task in queue:
            if self._stopped is None:
                try:
                    await self._judge(task)
                except Exception as error:  # raised by the caller, as it is; the other workers end after their task
                    self._stopped = self._stopped or error
            if self._stopped is not None:
                return
            self.on_progress(self.progress)

    async def _judge(self, task: Task) -> None:
        """Asks until the reply is valid, at most ``attempts`` times."""
        messages, reason = task.messages, ""
        for attempt in range(1, self.settings.attempts + 1):
            try:
                completion, used = await self._request(task, messages, attempt)
            except NoReplyError as error:
                reason, has_reply = str(error), False
                if not error.is_temporary:
                    break
                await self._wait(error, attempt)
                continue
            has_reply, self._failures_in_a_row = True, 0
            if other := self.folder.other_model(completion.model):
                reason = f"the reply is of the model {completion.model}, those before are of {other}"
                self._record(task, attempt, completion, used, status=INVALID, reason=reason)
                raise UsageError(f"{self.judge.url}: {reason}; judges are not mixed, give another --out")
            try:
                judgement = self.mode.parse(task, completion)
            except InvalidReplyError as error:
                reason = str(error) + ("; the reply was cut at --max-tokens" if completion.is_cut else "")
                self._record(task, attempt, completion, used, status=INVALID, reason=reason)
                messages = corrected(task.messages, completion.text, reason)
                continue
            self._record(task, attempt, completion, used, status=JUDGED, judgement=judgement)
            self.progress.judged += 1
            return
        self._fail(task, reason, has_reply=has_reply)

    def _fail(self, task: Task, reason: str, *, has_reply: bool) -> None:
        self.progress.failed += 1
        self.progress.reasons[task.key] = reason
        if has_reply:
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise JudgeUnreachableError(
                f"{self.judge.url}: {self._failures_in_a_row} requests in a row failed ({reason}); the same "
                "command asks again what is missing"
            )

    async def _request(self, task: Task, messages: Messages, attempt: int) -> tuple[Completion, tuple[int, int]]:
        """Sends one request within the budget, and again without log-probabilities if they say nothing.

        Returns the reply and its input and output tokens; where the endpoint does not count them, their bounds.
        """
        parameters = self.mode.parameters(task, self.requests, self._endpoint.refused)
        most = (max_input_tokens(messages), self.requests.max_tokens)
        await self._pause()
        if not self.budget.reserve(*most):
            raise JudgeStoppedError(
                f"--max-dollars {self.budget.max_dollars}: {self.budget.dollars():.4f} dollars are spent, and the next "
                "request could exceed the cap; give the same command with a higher one to continue"
            )
        used, refused = (0, 0), set(self._endpoint.refused)
        try:
            completion = await self._endpoint.ask(messages, parameters)
            input_tokens, output_tokens = completion.input_tokens, completion.output_tokens
            used = (
                most[0] if input_tokens is None else input_tokens,
                most[1] if output_tokens is None else output_tokens,
            )
        except NoReplyError as error:
            used = most if error.may_cost else (0, 0)
            self._record(task, attempt, None, used, status=NO_REPLY, reason=str(error))
            raise
        finally:
            self.budget.settle(most, used)
            if self._endpoint.refused != refused:
                self.folder.record_refused(self._endpoint.refused)
        if parameters.get(LOG_PROBABILITIES) and (problem := self._without_letters(completion)):
            self._record(task, attempt, completion, used, status=INVALID, reason=problem)
            if LOG_PROBABILITIES not in self._endpoint.refused:
                self._endpoint.leave_out(LOG_PROBABILITIES, f"{problem}; the judge is asked for the letter")
                self.folder.record_refused(self._endpoint.refused)
            return await self._request(task, messages, attempt)
        return completion, used

    def _without_letters(self, completion: Completion) -> str | None:
        """Returns why log-probabilities are no use, if so. Models that begin with thoughts show it at once."""
        if not completion.log_probabilities:
            return "the replies hold none"
        is_first = self.progress.judged == self.progress.failed == 0
        return "a reply begins with neither A nor B" if is_first and not letters(completion.log_probabilities) else None

    def _record(
        self, task: Task, attempt: int, completion: Completion | None, used: tuple[int, int], **said: Any
    ) -> None:
        """Appends to the raw replies, and waits until it is on the disk."""
        if completion:
            said["reply"] = completion.text
            if completion.log_probabilities:
                said["log_probabilities"] = completion.log_probabilities
        asked = {"key": task.key, "question": task.question, "models": task.models, "repeat": task.repeat}
        tokens = {"input_tokens": used[0], "output_tokens": used[1]}
        self._writer.write({**asked, "attempt": attempt, **said, **tokens, "at": now_as_text()})
        self._writer.flush()

    async def _pause(self) -> None:
        """Waits as long as the endpoint asked all requests to wait."""
        if (left := self._paused_until - asyncio.get_running_loop().time()) > 0:
            await sleep(left)

    async def _wait(self, error: NoReplyError, attempt: int) -> None:
        """Waits before the next attempt. What Retry-After asks for holds for all requests."""
        seconds = wait_seconds(error.retry_after, attempt)
        if seconds > MAX_WAIT_SECONDS:
            raise JudgeStoppedError(
                f"{self.judge.url}: asks to wait {readable_seconds(seconds)} ({error}); give the same command "
                "again then"
            )
        if attempt < self.settings.attempts and str(error) not in self._told:
            self._told.add(str(error))
            self.notice(f"notice: {error}; trying again" + (f" in {readable_seconds(seconds)}" if seconds >= 1 else ""))
        if error.retry_after:
            self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)
        elif attempt < self.settings.attempts:
            await sleep(seconds)
