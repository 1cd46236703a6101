"""The first page: what is going on, in runs and studies."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fromscratch.dashboard.figures import figures_of
from fromscratch.dashboard.site import Part, Site


def part(site: Site) -> Part:
    """The first page."""
    figures = figures_of(site)

    async def show(request: Request) -> Response:
        runs = await run_in_threadpool(figures.all)
        return site.page(
            request,
            "overview.html",
            exists=site.root.is_dir(),
            running=[one for one in runs if one.is_running],
            others=[one for one in runs if not one.is_running],
        )

    return Part((Route("/", show, methods=["GET"]),), entry=("/", "Runs"))
