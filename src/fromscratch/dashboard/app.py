"""Puts the parts of the dashboard together into one web application."""

from collections.abc import Callable, Iterable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from fromscratch.dashboard import compare_page, judged_page, live, overview, playground, run_page, study_page
from fromscratch.dashboard.security import LOCAL_NAMES, Guard
from fromscratch.dashboard.site import Part, RefusedRunError, Site
from fromscratch.dashboard.stamps import watch_of

PARTS: tuple[Callable[[Site], Part], ...] = (
    overview.part,
    run_page.part,
    study_page.part,
    judged_page.part,
    compare_page.part,
    playground.part,
    live.part,
)
"""Each adds pages; to add some, write a module with a function ``part`` and name it here."""


def create_app(root: Path, *, names: Iterable[str] = LOCAL_NAMES, token: str | None = None) -> Starlette:
    """Builds the application.

    Args:
        root: the folder of runs.
        names: host names under which it may be called.
        token: what a browser must present once; None where only this machine can connect.
    """
    site = Site(root)
    parts = [part(site) for part in PARTS]
    site.entries += [part.entry for part in parts if part.entry]
    static = Mount("/static", StaticFiles(packages=[("fromscratch.dashboard", "static")]), name="static")

    async def show_error(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 403
        reason = error.detail if isinstance(error, HTTPException) else str(error)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        page = site.page(request, "gone.html", status=status, reason=reason, state=status)
        page.headers.update(headers)
        return page

    app = Starlette(
        routes=[*(route for part in parts for route in part.routes), static],
        middleware=[Middleware(Guard, names=names, token=token)],
        exception_handlers={HTTPException: show_error, RefusedRunError: show_error},
    )
    app.state.closing, app.state.watch = site.closing, watch_of(site)
    return app
