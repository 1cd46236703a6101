"""Tells open pages when what they show has changed on the disk: server-sent events.

A *stamp* is a text that differs when a file of a run differs. It is computed from sizes and times of files, so that
watching costs no reading; all pages that show the same thing share it.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fromscratch.dashboard.site import JUDGED_FILES, Part, Site
from fromscratch.runs.directory import RunDirectory

MIN_INTERVAL_SECONDS = 2.0
SECONDS_PER_PAGE = 0.2
"""Each open page makes the updates of all rarer, so that many pages cost the training no more than a few."""
HEARTBEAT_SECONDS = 15.0
MAX_OPEN_PAGES, MAX_NAMES = 200, 50
WATCHED = ("status.json", "metrics.jsonl", "events.jsonl", "cost.json", "run.toml", "checkpoints", "evaluations")


def stamp_of(run: RunDirectory) -> str:
    """A text that differs when the run has changed, or a process has begun or ceased to train it."""
    return "\n".join([str(run.path), *(_file_stamp(run.path / name) for name in WATCHED), _holder(run)])


def stamp_of_all(runs: Iterable[RunDirectory], others: Iterable[Path] = ()) -> str:
    """One stamp of several runs and files."""
    parts = [*(stamp_of(run) for run in runs), *map(_file_stamp, others)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _file_stamp(path: Path) -> str:
    try:
        found = path.lstat()
    except OSError:
        return "-"
    return f"{found.st_mtime_ns} {found.st_size} {found.st_ino}"


def _holder(run: RunDirectory) -> str:
    return run.holder() if run.lock.is_file() else ""


class Watch:
    """Computes the stamp of what a page shows, at most once per interval for all pages."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._found: dict[str, tuple[float, str]] = {}
        self.open_pages = 0

    @property
    def interval_seconds(self) -> float:
        """Seconds between two looks at the disk."""
        return max(MIN_INTERVAL_SECONDS, SECONDS_PER_PAGE * self.open_pages)

    def stamp(self, name: str) -> str:
        """The stamp of a run, of a study, or of everything (an empty name)."""
        at, found = self._found.get(name, (0.0, ""))
        if time.monotonic() - at >= 0.5 * self.interval_seconds:
            found = self._look(name)
            self._found = {key: one for key, one in self._found.items() if time.monotonic() - one[0] < 60}
            self._found[name] = (time.monotonic(), found)
        return found

    def _look(self, name: str) -> str:
        if not name:
            judged = (path / file for path in self._site.judged() for file in JUDGED_FILES)
            return stamp_of_all(self._site.runs(), [self._site.root, *judged])
        try:
            folder = self._site.folder(name)
        except HTTPException:
            return "gone"
        if RunDirectory(folder).exists():
            return stamp_of_all([RunDirectory(folder)])
        inner = [run for path in self._site.folders(folder) if (run := RunDirectory(path)).exists()]
        return stamp_of_all(inner, [folder / file for file in ("study.json", "definition.json", *JUDGED_FILES)])


def part(site: Site) -> Part:
    """The stream of changes of what ``of`` names: runs and studies; everything without it."""
    watch = Watch(site)

    async def live(request: Request) -> Response:
        names = request.query_params.getlist("of") or [""]
        if watch.open_pages >= MAX_OPEN_PAGES:
            raise HTTPException(503, f"more than {MAX_OPEN_PAGES} pages are open; close some")
        if len(names) > MAX_NAMES:
            raise HTTPException(400, f"more than {MAX_NAMES} runs cannot be watched at once")
        return StreamingResponse(_changes(watch, names, site.closing), media_type="text/event-stream")

    return Part((Route("/live", live, methods=["GET"]),))


async def _changes(watch: Watch, names: list[str], closing: asyncio.Event) -> AsyncIterator[str]:
    """Yields an event whenever the stamp differs, and a comment now and then, which finds out that nobody listens."""
    watch.open_pages += 1
    try:
        last, said_at = "", time.monotonic()
        while not closing.is_set():
            stamp = " ".join([await run_in_threadpool(watch.stamp, name) for name in names])
            if stamp != last:
                yield f"data: {stamp}\n\n"
                last, said_at = stamp, time.monotonic()
            elif time.monotonic() - said_at > HEARTBEAT_SECONDS:
                yield ": still here\n\n"
                said_at = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), watch.interval_seconds)
    finally:
        watch.open_pages -= 1
