"""The pages of studies: ``/studies/NAME``."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fromscratch.dashboard.site import Part, Site, address, html_response, json_response, live_address, to_json
from fromscratch.dashboard.stamps import bodies_of
from fromscratch.dashboard.studies import CHARTS, studies_of


def part(site: Site) -> Part:
    """The page of a study, and the data of its charts."""
    studies, bodies = studies_of(site), bodies_of(site)

    def render(name: str) -> bytes:
        view = studies.view(name)
        if view.recorded is None and not view.runs:
            raise HTTPException(404, view.problem)
        charts = [(kind, title, address(f"study-chart/{kind}", name)) for kind, title in CHARTS.items()]
        return site.render("study.html", view=view, charts=charts, live=live_address(name))

    async def show(request: Request) -> Response:
        name = request.path_params["name"]
        return html_response(await bodies.get(("study",), [name], lambda: render(name)))

    async def chart(request: Request) -> Response:
        kind, name = request.path_params["chart"], request.path_params["name"]
        if kind not in CHARTS:
            raise HTTPException(404, f"there is no chart {kind[:80]!r}")
        return json_response(await bodies.get((kind,), [name], lambda: to_json(studies.chart(name, kind))))

    return Part(
        (
            Route("/studies/{name:path}", show, methods=["GET"]),
            Route("/study-chart/{chart}/{name:path}", chart, methods=["GET"]),
        )
    )
