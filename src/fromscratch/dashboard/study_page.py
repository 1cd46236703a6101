"""The pages of studies: ``/studies/NAME``."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fromscratch.dashboard.site import Part, Site, address, json_response, live_address
from fromscratch.dashboard.studies import CHARTS, studies_of


def part(site: Site) -> Part:
    """The page of a study, and the data of its charts."""
    studies = studies_of(site)

    async def show(request: Request) -> Response:
        name = request.path_params["name"]
        view = await site.in_thread(studies.view, name)
        if view.recorded is None and not view.runs:
            raise HTTPException(404, view.problem)
        charts = [(kind, title, address(f"study-chart/{kind}", name)) for kind, title in CHARTS.items()]
        return site.page(request, "study.html", view=view, charts=charts, live=live_address(name))

    async def chart(request: Request) -> Response:
        kind = request.path_params["chart"]
        if kind not in CHARTS:
            raise HTTPException(404, f"there is no chart {kind[:80]!r}")
        return json_response(await site.in_thread(studies.chart, request.path_params["name"], kind))

    return Part(
        (
            Route("/studies/{name:path}", show, methods=["GET"]),
            Route("/study-chart/{chart}/{name:path}", chart, methods=["GET"]),
        )
    )
