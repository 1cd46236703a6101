"""The pages of judge results: ``/judged/NAME``."""

import shlex
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fromscratch.dashboard.judged import CHARTS, chart_of, judged_of, short
from fromscratch.dashboard.site import Part, Site, address, html_response, json_response, live_address, to_json
from fromscratch.dashboard.stamps import bodies_of
from fromscratch.judging.writing import model_table, percent, said, shown, strength_of


def part(site: Site) -> Part:
    """The page of a results folder, and the data of its charts."""
    folders, bodies = judged_of(site), bodies_of(site)

    def render(name: str) -> bytes:
        view = folders.view(name)
        charts = [(kind, title, address(f"judged-chart/{kind}", name)) for kind, title in CHARTS.items()]
        path = shlex.quote(str(view.path))
        commands = {"label answers yourself": f"judge label {path}", "make the report again": f"judge report {path}"}
        words: dict[str, Any] = {"table": model_table(view.report) if view.report else ([], [])}
        words |= {"shown": shown, "percent": percent, "said": said, "short": short, "strength_of": strength_of}
        return site.render("judged.html", view=view, charts=charts, commands=commands, live=live_address(name), **words)

    async def show(request: Request) -> Response:
        name = request.path_params["name"]
        return html_response(await bodies.get(("judged",), [name], lambda: render(name)))

    async def chart(request: Request) -> Response:
        kind, name = request.path_params["chart"], request.path_params["name"]
        if kind not in CHARTS:
            raise HTTPException(404, f"there is no chart {kind[:80]!r}")
        return json_response(await bodies.get((kind,), [name], lambda: to_json(chart_of(folders.view(name), kind))))

    return Part(
        (
            Route("/judged/{name:path}", show, methods=["GET"]),
            Route("/judged-chart/{chart}/{name:path}", chart, methods=["GET"]),
        )
    )
