"""Tells open pages when what they show has changed on the disk: server-sent events.

All pages that show the same thing share its stamp (``stamps.py``).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fromscratch.dashboard.site import Part, Site
from fromscratch.dashboard.stamps import Watch, watch_of

HEARTBEAT_SECONDS = 15.0
MAX_OPEN_PAGES, MAX_NAMES = 200, 50


def part(site: Site) -> Part:
    """The stream of changes of what ``of`` names: runs and studies; everything without it."""
    watch = watch_of(site)

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
